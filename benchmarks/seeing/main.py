"""What counting costs: a batch, a partition, a heartbeat, a scheduler."""

from __future__ import annotations

import argparse
import gc
import time
import timeit
import tracemalloc
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgpack
from distributed import wait

from benchmarks import measure
from benchmarks.noop.main import collections
from dask_infer.dashboard.cluster_counters import ClusterCounters
from dask_infer.dashboard.page_tables import by_model, lines, replica_table, time_table
from dask_infer.metrics.cluster_sums import VERSION
from dask_infer.metrics.recorder import Recorder, add, meter
from dask_infer.metrics.sums import ACTIVITIES, Label, Sums, to_message
from dask_infer.metrics.totals import Totals, recording

#: Costs of a batch are CPU time: on a busy machine wall time is that of neighbours.
CPU = time.process_time


def batch() -> None:
    """Count as a batch does on its way through a local replica."""
    with meter("encode"):
        pass
    with meter("wait"), meter("forward"):
        pass
    add("forwards")
    with meter("decode"):
        pass
    add("rows", 100)


def batch_cost(rounds: int) -> list[list[Any]]:
    """Microseconds a batch, the fastest of several runs."""
    times = min(timeit.repeat(batch, number=20_000, repeat=rounds, timer=CPU)) / 20_000
    with recording("tcp://worker", Label("Linear-1", None, "job")):
        counted = (
            min(timeit.repeat(batch, number=20_000, repeat=rounds, timer=CPU)) / 20_000
        )

    def partition() -> None:
        with recording("tcp://worker", Label("Linear-1", None, "job")):
            pass

    opened = (
        min(timeit.repeat(partition, number=5_000, repeat=rounds, timer=CPU)) / 5_000
    )
    return [
        ["a batch where nothing is recorded", f"{1e6 * times:.2f} µs"],
        ["a batch that is counted", f"{1e6 * counted:.2f} µs"],
        ["a partition, once", f"{1e6 * opened:.2f} µs"],
    ]


def _switch(on: bool, dask_worker: Any) -> None:
    """Have the workers count, or not: there is no such switch outside benchmarks."""
    import contextlib

    from dask_infer.graph import tasks
    from dask_infer.metrics import recorder
    from dask_infer.replica import partition_counters as counters

    kept = vars(recorder).setdefault(
        "kept",
        (recorder.Meter.__enter__, recorder.Meter.__exit__, tasks.recording_partition),
    )
    enter, leave, partition = kept
    if on:
        dask_worker.metrics["infer"] = counters.heartbeat_message
    else:
        dask_worker.metrics.pop("infer", None)
        enter, leave = (lambda self: None), (lambda self, *error: None)
        partition = lambda *args: contextlib.nullcontext()  # noqa: E731
    recorder.Meter.__enter__, recorder.Meter.__exit__ = enter, leave
    tasks.recording_partition = partition


def noop_cost(partitions: int, rounds: int) -> list[list[Any]]:
    """Milliseconds a partition of the no-op benchmark, with and without counters."""
    with measure.cluster(2) as client:
        lazy = collections(partitions, 1000)["predict"]

        def run(on: bool) -> dict[str, float]:
            client.run(partial(_switch, on))
            cpu = sum(client.run(time.process_time).values())
            began = time.perf_counter()
            result = lazy.persist()
            wait(result)
            seconds = time.perf_counter() - began
            cpu = sum(client.run(time.process_time).values()) - cpu
            return {"seconds": seconds, "cpu": cpu}

        run(True)
        runs = measure.interleave(
            {"off": partial(run, False), "on": partial(run, True)}, rounds
        )
    rows = []
    for name, answers in runs.items():
        for what in ("seconds", "cpu"):
            times = [1e3 * answer[what] / partitions for answer in answers]
            rows.append(
                [
                    f"no-op partition, counters {name}, {what}",
                    f"{measure.median(times):.3f} ms ({measure.spread(times, 3)})",
                ]
            )
    return rows


def _sums(rows: int) -> Sums:
    seconds = {activity: rows / 7 for activity in ACTIVITIES}
    counts = dict.fromkeys(
        ("rows", "rows_in", "forwards", "started", "partitions"), rows
    )
    return Sums(counts, seconds, {"partitions": 1})


def _metrics(at: float, rows: int, models: int) -> dict[str, Any]:
    labels = [
        Label(f"MiniLM-{number:08}", None, "5e6f7a8b") for number in range(models)
    ]
    resident = [
        {"label": label.model, "model": "MiniLM", "device": "cuda:0", "stage": None,
         "serving": False, "bytes": 90_000_000, "rows": rows, "idle": 1.5}
        for label in labels
    ]  # fmt: skip
    message = {
        "version": VERSION,
        "at": at,
        "sums": to_message({label: _sums(rows) for label in labels}),
        "replicas": resident,
        "host": {"cpu": 1.5, "busy": 2.5, "cores": 8},
    }
    return {"infer": message}


def heartbeat_bytes() -> list[list[Any]]:
    """Bytes of what a worker adds to each heartbeat."""
    return [
        [
            f"heartbeat, {models} models",
            f"{len(msgpack.packb(_metrics(1.5, 1_000_001, models))):,} bytes",
        ]
        for models in (1, 10, 100)
    ]


def scheduler_cost(workers: int, models: int) -> list[list[Any]]:
    """Share of a core that a scheduler takes for workers that report every 2 s."""
    states = {
        f"tcp://10.0.0.1:{number}": SimpleNamespace(metrics=_metrics(0, 0, models))
        for number in range(workers)
    }
    counters = ClusterCounters(states)
    addresses = list(states)
    counting, page, ticks = 0.0, 0.0, 240  # two minutes at two a second
    for tick in range(ticks):
        for address in addresses[tick % 4 :: 4]:
            states[address].metrics = _metrics(tick / 2, 100 * tick, models)
        began = time.process_time()
        counters.update(note=tick % 2 == 0)
        counted = time.process_time()
        found = by_model(lines(counters))
        replica_table(found)
        time_table(found)
        page += time.process_time() - counted
        counting += counted - began
    share = 100 / (ticks * 0.5)
    name = f"scheduler, {workers} workers, {models} models"
    return [
        [name, f"{share * counting:.2f} % of a core"],
        [f"{name}, each open page", f"{share * page:.2f} % of a core"],
    ]


def memory_growth() -> list[list[Any]]:
    """KiB that a worker and the scheduler hold after so many jobs."""
    rows = []
    totals, state = Totals(), SimpleNamespace(metrics={})
    counters = ClusterCounters({"tcp://worker": state})
    tracemalloc.start()
    for number in range(10_000):
        recorder = Recorder(
            "tcp://worker", Label("Linear-1", None, f"{number:08}"), "other"
        )
        totals.open(recorder)
        recorder.add("rows", 100)
        totals.close(recorder)
        sums = to_message(totals.snapshot("tcp://worker"))
        message = {"version": VERSION, "at": number / 2, "sums": sums}
        state.metrics = {"infer": {**message, "replicas": [], "host": {}}}
        counters.update(note=True)
        if number + 1 in (100, 1_000, 10_000):
            gc.collect()
            held = tracemalloc.get_traced_memory()[0] / 1024
            rows.append([f"held after {number + 1:,} jobs", f"{held:,.0f} KiB"])
    tracemalloc.stop()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = [*batch_cost(2 * arguments.rounds), *heartbeat_bytes()]
    rows += [*scheduler_cost(200, 1), *scheduler_cost(200, 10), *memory_growth()]
    rows += noop_cost(arguments.partitions, arguments.rounds)
    print(measure.machine(), measure.table(["what", "cost"], rows), sep="\n\n")


if __name__ == "__main__":
    main()
