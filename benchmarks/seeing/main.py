"""What counting costs: a batch, a partition, a heartbeat, a scheduler."""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import timeit
import tracemalloc
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgpack
from distributed import wait
from distributed.worker import thread_state

from benchmarks import measure
from benchmarks.noop.functions import make_frame
from benchmarks.noop.main import collections
from dask_infer.dashboard.cluster_counters import ClusterCounters
from dask_infer.dashboard.page_tables import (
    by_model,
    replica_table,
    table_rows,
    time_table,
)
from dask_infer.graph.tasks import run_partition
from dask_infer.metrics.cluster_sums import VERSION
from dask_infer.metrics.recorder import Recorder, add, meter
from dask_infer.metrics.sums import ACTIVITIES, Label, Sums, to_message
from dask_infer.metrics.totals import ENDED, Totals, recording
from dask_infer.replica import partition_counters

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

    from dask_infer.metrics import recorder
    from dask_infer.replica import partition_counters as counters
    from dask_infer.run import partition as partitions
    from dask_infer.run import predict

    kept = vars(recorder).setdefault(
        "kept",
        (
            *(recorder.Meter.__enter__, recorder.Meter.__exit__),
            *(predict.recording_partition, partitions.is_observed),
        ),
    )
    enter, leave, partition, is_observed = kept
    if on:
        dask_worker.metrics["infer"] = counters.heartbeat_message
    else:
        dask_worker.metrics.pop("infer", None)
        enter, leave = (lambda self: None), (lambda self, *error: None)
        partition = lambda *args: contextlib.nullcontext()  # noqa: E731
        is_observed = lambda *args: False  # noqa: E731
    recorder.Meter.__enter__, recorder.Meter.__exit__ = enter, leave
    predict.recording_partition, partitions.is_observed = partition, is_observed


def call_cost(rounds: int) -> list[list[Any]]:
    """CPU of the one function that a task calls, without Dask around it.

    Counters on and off in turn, call by call: on a busy machine both of a pair are
    delayed alike. Of each round the medians of calls and pairs. They leave out that
    partitions which ended are added up, many in one call: that is measured by itself.
    """
    node = collections(1, 1000)["predict"].expr.frame
    frame = make_frame(0, 1000)
    worker = SimpleNamespace(metrics={}, address="tcp://worker")
    # Recording asks which worker it is on; the task itself runs as without one.
    partition_counters.current_worker = lambda: worker
    thread_state.start_time = time.time()

    def run(on: bool) -> float:
        _switch(on, worker)
        began = time.thread_time()
        run_partition(frame, node._job_bytes, node.emit, None, 0)
        return 1e6 * (time.thread_time() - began)

    calls = {"off": partial(run, False), "on": partial(run, True)}
    measure.interleave(calls, 50)
    found: dict[str, list[float]] = {"off": [], "on": [], "on - off": []}
    gc.disable()
    for _ in range(rounds):
        gc.collect()
        runs = measure.interleave(calls, 100)
        pairs = zip(runs["on"], runs["off"], strict=True)
        runs["on - off"] = [on - off for on, off in pairs]
        for name, times in runs.items():
            found[name].append(measure.median(times))
    gc.enable()
    what = "no-op partition without Dask, counters"
    rows = [[f"{what} {name}", _quartiles(times)] for name, times in found.items()]
    return [*rows, ["adding up a partition that ended", f"{_adding():.1f} µs"]]


def _adding() -> float:
    """Microseconds that a recorder takes to be added, the fastest of several runs."""
    label, fastest = Label("Linear-1", None, "job"), float("inf")
    for _ in range(200):
        totals = Totals()
        for _ in range(ENDED):
            totals.open(recorder := Recorder("tcp://worker", label))
            with recorder:
                batch()
            recorder.counts |= {"started": 1, "rows_in": 100, "partitions": 1}
            recorder.seconds |= {"read": 1.0, "load": 1.0}
        began = CPU()
        totals.snapshot("tcp://worker")
        fastest = min(fastest, CPU() - began)
    return 1e6 * fastest / ENDED


def noop_cost(partitions: int, rounds: int) -> list[list[Any]]:
    """CPU of workers and wall time, a partition of the no-op benchmark.

    Counters on and off in turn, a pair a round: what a neighbour does to the caches
    then falls on both of a pair, and the median of the pairs leaves out the rest.
    """
    with measure.cluster(2) as client:
        lazy = collections(partitions, 1000)["predict"]

        def run(on: bool) -> tuple[float, float]:
            client.run(partial(_switch, on))
            cpu = sum(client.run(time.process_time).values())
            began = time.perf_counter()
            result = lazy.persist()
            wait(result)
            wall = time.perf_counter() - began
            return sum(client.run(time.process_time).values()) - cpu, wall

        run(True)
        runs = measure.interleave(
            {"off": partial(run, False), "on": partial(run, True)}, rounds
        )
    rows = []
    for place, kind in enumerate(("CPU", "wall")):
        micros = {
            name: [1e6 * run[place] / partitions for run in found]
            for name, found in runs.items()
        }
        rows += _compared(f"no-op partition, {kind}, counters", micros)
    return rows


def _compared(what: str, micros: dict[str, list[float]]) -> list[list[Any]]:
    """Microseconds off and on, and what each pair differs by: medians and quartiles."""
    pairs = list(zip(micros["on"], micros["off"], strict=True))
    rows = [[f"{what} {name}", _quartiles(micros[name])] for name in ("off", "on")]
    rows += [[f"{what} on - off", _quartiles([on - off for on, off in pairs])]]
    ratios = statistics.quantiles([on / off for on, off in pairs], n=4)
    low, middle, high = (f"{ratio:.3f}" for ratio in ratios)
    return [*rows, [f"{what} on / off", f"{middle} ({low} to {high})"]]


def _quartiles(micros: list[float]) -> str:
    low, middle, high = statistics.quantiles(micros, n=4)
    return f"{middle:,.1f} µs ({low:,.1f} to {high:,.1f})"


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
        found = by_model(table_rows(counters))
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
        recorder = Recorder("tcp://worker", Label("Linear-1", None, f"{number:08}"))
        totals.open(recorder)
        with recorder:
            add("rows", 100)
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
    parser.add_argument("--partitions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    rows = [*batch_cost(arguments.rounds), *heartbeat_bytes()]
    rows += [*scheduler_cost(200, 1), *scheduler_cost(200, 10), *memory_growth()]
    rows += call_cost(5 * arguments.rounds)
    rows += noop_cost(arguments.partitions, arguments.rounds)
    print(measure.machine(), measure.table(["what", "cost"], rows), sep="\n\n")


if __name__ == "__main__":
    main()
