"""Whether partitions are of a good size: not too small, too few or too large.

The scheduler handles one task at a time, so many workers wait for it where their tasks
are short. A worker holds the partitions that it works at in memory.
"""

from __future__ import annotations

from math import ceil, sqrt

from dask_infer.plan.layouts.job_facts import TASK
from dask_infer.plan.units import in_bytes, in_seconds

#: Seconds of the scheduler that are worth a warning.
WORTH = 1.0
#: Times that a partition is in memory at once: as read, as a frame, with its result.
COPIES = 3


def partition_warnings(
    rows: int,
    partitions: int,
    workers: int,
    row_seconds: float | None = None,
    row_bytes: float | None = None,
    memory: float | None = None,
    threads: int = 1,
    local: bool = True,
) -> list[str]:
    """Return what is wrong with the size of partitions, and the remedy; else nothing.

    Parameters
    ----------
    rows, partitions
        Of the whole job.
    workers
        That run partitions at the same time.
    row_seconds
        Of one worker, for one row; None where it is unknown.
    row_bytes
        Of a row in a frame, inputs and outputs; None where it is unknown.
    memory
        Bytes of a worker beside its models; None where there is no limit.
    threads
        Partitions that a worker runs at a time.
    local
        Whether the model runs where its partitions do: else few keep it busy.
    """
    if not rows or not partitions or not workers:
        return []
    found, places = [], workers * threads
    if local and partitions < places:
        found.append(
            f"partitions are too few: {partitions} for {places} threads, so "
            f"{places - partitions} stay idle; use "
            f"ddf.repartition(npartitions={places})"
        )
    seconds, scheduler = rows * (row_seconds or 0.0), partitions * TASK
    most = most_partitions(seconds, workers)
    if seconds and partitions > most and scheduler > max(WORTH, seconds / workers):
        found.append(
            "partitions are too small: a partition takes "
            f"{in_seconds(seconds / partitions)} on one of {workers} workers, and the "
            f"scheduler takes about {in_seconds(TASK)} for each, "
            f"{in_seconds(scheduler)} in all; use ddf.repartition(npartitions={most})"
        )
    running = rows / partitions * threads * (row_bytes or 0.0)
    if memory and COPIES * running > memory:
        least = ceil(partitions * COPIES * running / memory)
        found.append(
            "partitions are too large: those that a worker runs at a time are "
            f"{in_bytes(running)} of rows, which it holds up to {COPIES} times, and it "
            f"has {in_bytes(memory)} for them; use ddf.repartition(npartitions={least})"
        )
    return found


def most_partitions(seconds: float, workers: int) -> int:
    """Return the partitions beyond which the scheduler is slower than the workers.

    Parameters
    ----------
    seconds
        Work of the whole job, of all workers together.
    """
    most = seconds / (workers * TASK)
    # A short job needs fewer workers: its least time is where both are equally slow.
    return max(1, int(most if most >= workers else sqrt(seconds / TASK)))
