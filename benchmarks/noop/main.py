"""What a prediction costs when the model does nothing, per partition."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import dask
import dask.dataframe as dd
import pandas as pd
from distributed import wait

import dask_infer  # noqa: F401  (registers the accessor)
from benchmarks import measure
from benchmarks.noop.functions import assign, count, identity, make_frame, noop

HEADER = (
    "workers | partitions | contender | ms a partition | range | ratio | "
    "scheduler CPU ms | workers CPU ms | scheduler KiB"
)
SIZES = "expression bytes | task bytes"


def collections(partitions: int, rows: int) -> dict[str, Any]:
    """Lazy collections of the contenders over the same source."""
    source = dd.from_map(
        partial(make_frame, rows=rows), range(partitions), meta=make_frame(0, 1)
    )
    predicted = source.infer.predict(noop, columns="a", meta="float32")
    contenders = {
        "identity": source.map_partitions(identity, meta=source._meta),
        "assign": source.map_partitions(assign, meta=assign(source._meta)),
        "predict": predicted,
    }
    meta = pd.Series([], dtype="int64")
    return {n: c.map_partitions(count, meta=meta) for n, c in contenders.items()}


def compute(collection: Any, client: Any) -> dict[str, float]:
    """Run one collection; the scheduler's growth is taken while it holds the tasks."""
    while client.run_on_scheduler(_tasks):
        time.sleep(0.05)
    before = client.run_on_scheduler(measure.settled_rss)
    cpu = _cpu(client)
    start = time.perf_counter()
    result = collection.persist()
    wait(result)
    elapsed = time.perf_counter() - start
    scheduler, workers = (
        now - then for now, then in zip(_cpu(client), cpu, strict=True)
    )
    growth = client.run_on_scheduler(measure.settled_rss) - before
    return {
        "seconds": elapsed,
        "scheduler": scheduler,
        "workers": workers,
        "growth": growth,
    }


def _cpu(client: Any) -> tuple[float, float]:
    """CPU seconds of the scheduler, and of all workers together."""
    return (
        client.run_on_scheduler(time.process_time),
        sum(client.run(time.process_time).values()),
    )


def _tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def compare(client: Any, partitions: int, rows: int, rounds: int) -> list[list[Any]]:
    """Lines of the table for one number of partitions."""
    lazy = collections(partitions, rows)
    calls: dict[str, Callable[[], dict[str, float]]] = {
        name: partial(compute, collection, client) for name, collection in lazy.items()
    }
    answers = measure.interleave(calls, rounds)
    base = measure.median([run["seconds"] for run in answers["identity"]])
    lines = []
    for name, runs in answers.items():
        times = [1e3 * run["seconds"] / partitions for run in runs]
        scheduler, workers, growth = (
            measure.median([run[key] for run in runs]) / partitions
            for key in ("scheduler", "workers", "growth")
        )
        ratio = measure.median(times) * partitions / base / 1e3
        lines.append(
            [
                len(client.scheduler_info(n_workers=-1)["workers"]),
                partitions,
                f"`{name}`",
                f"{measure.median(times):.3f}",
                measure.spread(times, 3),
                f"{ratio:.3f}",
                f"{1e3 * scheduler:.2f}",
                f"{1e3 * workers:.2f}",
                f"{growth / 1024:.1f}",
                measure.expression_bytes(lazy[name]),
                measure.graph_bytes(lazy[name]) // partitions,
            ]
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", nargs="+", type=int, default=[10, 1000, 10_000])
    parser.add_argument("--rows", type=int, default=1000, help="rows of a partition")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", nargs="+", type=int, default=[2])
    arguments = parser.parse_args()
    dask.config.set({"distributed.comm.timeouts.connect": "60s"})
    lines = []
    for workers in arguments.workers:
        with measure.cluster(workers) as client:
            compare(client, 100, arguments.rows, 1)
            for partitions in arguments.partitions:
                rounds = arguments.rounds * (4 if partitions < 100 else 1)
                lines += compare(client, partitions, arguments.rows, rounds)
    header = f"{HEADER} | {SIZES}".split(" | ")
    print(measure.machine(), measure.table(header, lines), sep="\n\n")


if __name__ == "__main__":
    main()
