"""What very many rows take on very many workers, and what becomes the limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.simulate import tasks
from benchmarks.simulate.calibration import SCHEDULER, STORE, WATCHER, WORKER
from dask_infer.pipeline.scheduler.group import INTERVAL

#: Answers of the coordinator for a partition that is fed to other workers: to who asks
#: for the group, and to who watches it anew.
ANSWERS = 2

SIZES_HEADER = (
    "partitions | rows each | seconds each | job s | efficiency | scheduler busy | "
    "fed to other workers, job s | the limit"
)


def sizes(
    rows: int, workers: int, row_seconds: float, counts: list[int]
) -> Iterator[list[Any]]:
    """Lines of the table by number of partitions."""
    work = rows * row_seconds
    for count in counts:
        each = work / count
        found = {}
        for kind, extra in (("local", 0.0), ("fed", ANSWERS * WATCHER.value)):
            cluster = tasks.Cluster(workers, SCHEDULER.value + extra, WORKER.value)
            found[kind] = tasks.run(cluster, count, lambda _, each=each: [each])  # type: ignore[misc]
        job = found["local"]
        busy = count * SCHEDULER.value / job
        yield [
            f"{count:,}", f"{rows // count:,}", f"{each:.3f}", f"{job:.0f}",
            f"{work / workers / job:.2f}", f"{busy:.0%}", f"{found['fed']:.0f}",
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
    fed = 1 + ANSWERS * WATCHER.value / SCHEDULER.value
    yield (
        f"Coordinator: {share:.1%} of the scheduler while a group forms or grows, "
        f"however many watch; a loss takes {workers * WATCHER.value:.2f} s of it. "
        f"Partitions fed to other workers take {ANSWERS} answers more each: {fed:.2f} "
        "times the scheduler's time."
    )
    for nbytes in (1e8, 1e9, 1e10):
        seconds = hosts * nbytes / STORE.value
        yield (
            f"Store: {nbytes / 1e9:g} GB of weights read once by each of {hosts} hosts "
            f"take {seconds:,.0f} s at {STORE.value / 1e9:g} GB/s."
        )
