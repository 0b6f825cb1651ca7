"""What limits a job, found from the seconds of its threads and of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_infer.metrics.sums import ACTIVITIES, Sums, from_message

#: A stage that computes for more of the time sets the pace.
BUSY = 0.8
#: One that computes for more of the time, and twice as much as each other, as well:
#: where a job is short, stages have nothing to do at its start.
LOPSIDED = 0.5
#: A window that is fuller lets the feeders wait.
FULL = 0.7
#: Loading is the cause where it takes more of the time; else it is left out.
LOADING = 0.5
#: Part of a host's cores in use from which threads take them from each other.
CROWDED = 0.9

#: Cause and remedy by what the threads of partitions mostly do.
CAUSES = {
    "forward": (
        "compute-bound: the model itself",
        "Use more workers or a faster device=, dtype='bfloat16' where the device has "
        "it, or a larger batch_size= where rows a second still grow with it.",
    ),
    "transfer": (
        "transfer-bound: copies to the device",
        "Use a larger batch_size=, and columns= that are smaller.",
    ),
    "spill": (
        "transfer-bound: activations of a sweep in files",
        "Set infer.sweep.activations to what memory allows, or use smaller partitions.",
    ),
    "wait": (
        "compute-bound: threads wait in turn for one device",
        "Use more workers with fewer threads each (threads_per_worker=1), or more "
        "devices.",
    ),
    "encode": (
        "starved: encoding (preprocess and tokenizer included)",
        "Make preprocess= cheaper or move it before predict(), or use more workers; "
        "the setting infer.batch.prefetch makes more batches ahead.",
    ),
    "read": (
        "starved: reading, and what is computed before the prediction",
        "Use more workers or threads_per_worker=, read fewer columns, or persist() "
        "what is read several times; the model has nothing to do meanwhile.",
    ),
    "idle": (
        "idle: other models of the same rows take longer",
        "Make those faster, which are listed beside this one: more workers, a faster "
        "device=. This one does with fewer: Layout(replicas=...).",
    ),
    "decode": (
        "output-bound: making columns of what the model returns",
        "Keep fewer fields with output=, or reduce them in postprocess=.",
    ),
    "load": (
        "starved: loading the model",
        "Larger partitions or a second compute() find it loaded; unload() less often. "
        "In a sweep, which loads each layer group once for all rows that wait, more of "
        "them should wait: larger partitions, or a larger threads_per_worker=.",
    ),
    "other": (
        "overhead: work around the batches",
        "Use larger partitions (repartition(partition_size='100MB')) and a larger "
        "batch_size=.",
    ),
}


@dataclass(frozen=True)
class Bottleneck:
    """What one job of one model did, and what would make it faster."""

    model: str
    job: str
    running: bool
    rows: int
    #: Seconds from its first to its last partition; 0 where they are not known.
    seconds: float
    #: What limits it, in words.
    cause: str
    #: What to change, naming the argument.
    remedy: str
    #: Parts of the time of the threads of its partitions, by activity.
    shares: Mapping[str, float]
    #: The same by stage, for a model that is spread over workers.
    stages: Mapping[int, Mapping[str, float]]
    #: What else is to be known, sentences.
    notes: tuple[str, ...] = ()


def find_bottleneck(record: Mapping[str, Any]) -> Bottleneck:
    """Return what limits a job by its record, `JobRecord.to_message`."""
    ((_, sums),) = from_message(record["sums"]).items()
    stages = {
        label.stage: stage
        for label, stage in from_message(record["stages"]).items()
        if label.stage is not None and stage.count("forwards")
    }
    # Stages and hosts are known from the first look at the job.
    observed = record["end"] - record["seen"]
    if stages:
        cause, remedy = _of_stages(sums, stages, observed)
    else:
        largest = _largest(sums)
        if largest == "transfer" and sums.count("spilled_bytes"):
            largest = "spill"
        cause, remedy = CAUSES[largest]
    return Bottleneck(
        record["model"],
        record["job"],
        record["running"],
        sums.count("rows"),
        record["end"] - record["start"],
        cause,
        remedy,
        _shares(sums),
        {stage: _shares(each) for stage, each in sorted(stages.items())},
        _notes(record["host"], observed),
    )


def _shares(sums: Sums) -> dict[str, float]:
    total = sum(sums.seconds.values())
    known = [a for a in ACTIVITIES if sums.seconds.get(a)]
    return {a: sums.seconds[a] / total for a in known}


def _largest(sums: Sums, without: tuple[str, ...] = ()) -> str:
    shares = _shares(sums)
    if shares.get("load", 0.0) < LOADING:
        without = (*without, "load")
    parts = {a: s for a, s in shares.items() if a in CAUSES and a not in without}
    return max(parts, key=lambda activity: parts[activity], default="other")


def _of_stages(
    sums: Sums, stages: Mapping[int, Sums], seconds: float
) -> tuple[str, str]:
    busy = {stage: _shares(each).get("forward", 0.0) for stage, each in stages.items()}
    first = max(busy, key=lambda stage: busy[stage])
    cause = f"compute-bound in stage {first}, which is {busy[first]:.0%} busy"
    others = [share for stage, share in busy.items() if stage != first]
    if busy[first] > LOPSIDED and others and max(others) < busy[first] / 2:
        return f"{cause}; the others wait for it", (
            f"Cut stage {first} in smaller parts: Layout(stages=[names of the "
            "modules at which to cut]), or stages='auto'."
        )
    if busy[first] > BUSY:
        return cause, (
            "Use more workers: Layout(replicas=...) for more groups, a larger "
            "Layout(stages=...) for smaller stages, or a faster device=."
        )
    if any(map(_waits_for_messages, stages.values())):
        return "transfer-bound: stages wait for messages", (
            "Use fewer shards, Layout(shards=...), or stages alone where each layer "
            "fits on a worker; larger microbatches, Layout(microbatch=...) or "
            "batch_size=."
        )
    inside = _total(stages, "inside_seconds")
    forward = sum(each.seconds.get("forward", 0.0) for each in stages.values())
    at_stages = _total(stages, "stage_seconds")
    # The time before its first microbatch makes a short job's windows seem empty.
    queued = _total(stages, "queued_seconds") > inside
    queued = queued and _largest(sums) == "wait"
    if queued or _occupancy(stages, inside, seconds) > FULL:
        if inside - at_stages > at_stages - forward:
            return "transfer-bound: microbatches on their route between stages", (
                "Use larger microbatches, Layout(microbatch=...) or batch_size=, or "
                "fewer stages: Layout(stages=1) where a worker can hold the model."
            )
        return "compute-bound: stages take turns", (
            "Give each stage cores or a device of its own: fewer stages, "
            "Layout(stages=...), or workers on more machines."
        )
    return CAUSES[_largest(sums, without=("wait",))]


def _waits_for_messages(stage: Sums) -> bool:
    """Whether a stage mostly exchanges parts with other shards, or reads inputs."""
    shares = _shares(stage)
    transfer, forward = shares.get("transfer", 0.0), shares.get("forward", 0.0)
    return transfer > forward and transfer + forward > BUSY


def _total(stages: Mapping[int, Sums], name: str) -> float:
    return sum(each.counts.get(name, 0.0) for each in stages.values())


def _occupancy(stages: Mapping[int, Sums], inside: float, seconds: float) -> float:
    """Return how full the windows at the first stages are, on average."""
    entry = stages[min(stages)]
    window = entry.levels.get("window", 0.0)
    spent = sum(entry.seconds.values())
    if not window or not spent:
        return 0.0
    groups = max(1, round(spent / seconds)) if seconds else 1
    return inside / (spent * window / groups)


def _notes(host: Mapping[str, float], seconds: float) -> tuple[str, ...]:
    """Return a sentence where threads take the cores from each other."""
    if not seconds or not host.get("cores"):
        return ()
    cores = host["cores"]
    used = host["busy"] / (seconds * cores)
    if used < CROWDED:
        return ()
    own = min(1.0, host["cpu"] / (seconds * cores))
    return (
        f"The cores are shared: {min(used, 1.0):.0%} of {cores:.0f} cores were in use, "
        f"{own:.0%} by the workers, so every activity takes longer than it would "
        "alone. Fewer threads or stages a machine, or more machines.",
    )
