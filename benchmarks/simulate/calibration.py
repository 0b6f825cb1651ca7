"""The numbers that the models start from: each is a figure of another benchmark."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A number, and where it stands."""

    value: float
    unit: str
    what: str
    #: Folder of the benchmark, and the figure in its README.
    source: str


SCHEDULER = Figure(
    0.55e-3, "s a task", "the scheduler's CPU for a partition's task",
    "noop: predict with 2, 4 and 8 workers, 0.52 to 0.58 ms",
)  # fmt: skip
WORKER = Figure(
    2.36e-3, "s a task", "a worker's CPU around the model, for a partition's task",
    "noop: predict with 4 workers",
)  # fmt: skip
STAGE_CPU = Figure(
    3e-3, "s", "from stage to stage: receive, queue, run, send",
    "depth: some 3 ms of CPU for each microbatch and stage",
)  # fmt: skip
JOB = Figure(
    0.08, "s", "beginning and end of a job",
    "depth: 0.08 s a job with 2 stages",
)  # fmt: skip
NOTICED = Figure(
    0.03, "s", "from a kill until the coordinator knows",
    "recovery: noticed, all stages",
)  # fmt: skip
READY = Figure(
    0.06, "s", "from a kill until all stages serve again, with a spare worker",
    "recovery: ready again, 0.06 to 0.07",
)  # fmt: skip
WATCHER = Figure(
    0.19e-3, "s", "the coordinator's answer to one watcher",
    "watchers: scheduler's share over answers/s while 125 x 8 form",
)  # fmt: skip
STORE = Figure(
    1e9, "bytes/s", "what one file server gives to all hosts together",
    "assumed: no benchmark measures one",
)  # fmt: skip
FIGURES = (SCHEDULER, WORKER, STAGE_CPU, JOB, NOTICED, READY, WATCHER, STORE)

#: Bytes and seconds of one hop on one host (transport: hop ms).
HOPS = (
    (64e3, 0.41e-3), (256e3, 0.73e-3), (1e6, 1.49e-3), (4e6, 3.23e-3),
    (16e6, 9.12e-3), (64e6, 27.27e-3),
)  # fmt: skip


def hop(nbytes: float) -> float:
    """Seconds from stage to stage: fixed costs, and transport between its figures."""
    sizes = [size for size, _ in HOPS]
    after = min(max(1, bisect_left(sizes, nbytes)), len(HOPS) - 1)
    (small, low), (large, high) = HOPS[after - 1 : after + 1]
    share = max(0.0, (nbytes - small) / (large - small))
    return STAGE_CPU.value + low + share * (high - low)
