"""What very many rows take on very many workers, and what becomes the limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.simulate import tasks
from benchmarks.simulate.calibration import SCHEDULER, STORE, WATCHER, WORKER
from dask_infer.pipeline.scheduler.group import INTERVAL

SIZES_HEADER = (
    "partitions | rows each | seconds each | job s | efficiency | scheduler busy | "
    "the limit"
)


def sizes(
    rows: int, workers: int, row_seconds: float, counts: list[int]
) -> Iterator[list[Any]]:
    """Lines of the table by number of partitions."""
    work = rows * row_seconds
    for count in counts:
        each = work / count
        cluster = tasks.Cluster(workers, SCHEDULER.value, WORKER.value)
        job = tasks.run(cluster, count, lambda _, each=each: [each])  # type: ignore[misc]
        busy = count * SCHEDULER.value / job
        yield [
            f"{count:,}", f"{rows // count:,}", f"{each:.3f}", f"{job:.0f}",
            f"{work / workers / job:.2f}", f"{busy:.0%}",
            _limit(count, workers, busy),
        ]  # fmt: skip


def _limit(count: int, workers: int, busy: float) -> str:
    if busy > 0.9:
        return "scheduler"
    if count < workers:
        return f"{workers - count} idle workers"
    return "workers" if count > 4 * workers else "workers: few partitions for each"


def limits(workers: int, hosts: int, row_seconds: float) -> Iterator[str]:
    """Where the scheduler, the coordinator of groups and the store become the limit."""
    least = workers * SCHEDULER.value
    yield (
        f"Scheduler: partitions of less than {workers:,} x "
        f"{1e3 * SCHEDULER.value:.1f} ms = {least:.1f} s, which are "
        f"{least / row_seconds:,.0f} rows here."
    )
    share = WATCHER.value / max(INTERVAL[1], INTERVAL[0] / workers)
    yield (
        f"Coordinator: {share:.1%} of the scheduler while a group forms or grows, "
        f"however many watch; a loss takes {workers * WATCHER.value:.2f} s of it."
    )
    for nbytes in (1e8, 1e9, 1e10):
        seconds = hosts * nbytes / STORE.value
        yield (
            f"Store: {nbytes / 1e9:g} GB of weights read once by each of {hosts} hosts "
            f"take {seconds:,.0f} s at {STORE.value / 1e9:g} GB/s."
        )
