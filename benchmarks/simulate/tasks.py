"""Partition tasks under one scheduler: a server of one task at a time, and workers.

The scheduler takes a while for each task that ends, before a worker gets the next. A
worker has a task in store for each that it runs (`worker-saturation` 1.1 of one thread
is two), so a slow scheduler is felt only once it is the limit. Processes that share
cores are slowed down alike.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """One-thread workers and their scheduler; times in seconds."""

    workers: int
    #: CPU of the scheduler for a task, and of the worker around what the task does.
    scheduler: float
    worker: float
    #: Cores that all of them share; infinite where each process has its own.
    cores: float = math.inf
    #: Processes beside them that always want a core.
    others: float = 0.0
    #: Tasks that a worker has, running and in store.
    slots: int = 2


def run(
    cluster: Cluster, tasks: int, seconds: Callable[[int], Sequence[float]]
) -> float:
    """Return the time of so many tasks.

    Parameters
    ----------
    seconds
        Of each task on the worker of this number, in the order in which it gets them;
        what a task waits or computes besides `Cluster.worker`.
    """
    lists = [seconds(worker) for worker in range(cluster.workers)]
    slow = slowdown(cluster, [sum(own) / len(own) for own in lists])
    service, extra = slow * cluster.scheduler, slow * cluster.worker
    given = [0] * cluster.workers
    free = [0.0] * cluster.workers
    served, left = 0.0, tasks
    #: Ends that the scheduler has not handled: when, worker.
    ends: list[tuple[float, int]] = []

    def start(worker: int, at: float) -> None:
        own = lists[worker]
        taken = own[given[worker] % len(own)] + extra
        given[worker] += 1
        free[worker] = max(free[worker], at) + taken
        heapq.heappush(ends, (free[worker], worker))

    # The first tasks are handed out as the graph arrives.
    for _ in range(cluster.slots):
        for worker in range(cluster.workers):
            if left:
                left -= 1
                start(worker, served)
    while ends:
        ended, worker = heapq.heappop(ends)
        served = max(served, ended) + service
        if left:
            left -= 1
            start(worker, served)
    return served


def slowdown(cluster: Cluster, means: Sequence[float]) -> float:
    """Return how many times longer CPU takes, where processes share cores.

    A fixed point: the faster tasks come, the more of the cores they want. A process
    that wants a core gets one, or its part of the cores where more want one.
    """
    if math.isinf(cluster.cores):
        return 1.0

    def wanted(slow: float) -> float:
        """Cores that the cluster and all others want at once."""
        each = [mean + slow * cluster.worker for mean in means]
        rate = min(
            sum(1 / max(one, 1e-9) for one in each), 1 / (slow * cluster.scheduler)
        )
        # Seconds in which a process runs or waits to run, for each second.
        return rate * slow * (cluster.scheduler + cluster.worker) + cluster.others

    low, high = 1.0, 1.0 + (cluster.workers + 1 + cluster.others) / cluster.cores
    for _ in range(60):
        middle = (low + high) / 2
        if max(1.0, wanted(middle) / cluster.cores) > middle:
            low = middle
        else:
            high = middle
    return high
