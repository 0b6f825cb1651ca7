"""Partition tasks under one scheduler: a server of one task at a time, and workers.

The scheduler takes CPU for each task that ends, before a worker gets the next. A worker
has a task in store for each that it runs (`worker-saturation` 1.1 of one thread is
two), so a slow scheduler is felt only once it is the limit. Processes that want a core
at the same time share the cores equally (processor sharing).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: A worker sends to the scheduler once in 2 ms, the scheduler to a worker once in 5 ms
#: (`BatchedSend` of distributed 2026.8).
TO_SCHEDULER, TO_WORKER = 2e-3, 5e-3


@dataclass(frozen=True)
class Cluster:
    """One-thread workers and their scheduler; times in seconds."""

    workers: int
    #: CPU of the scheduler for a task, and of the worker around what the task does.
    scheduler: float
    worker: float
    #: Cores that all of them share; infinite where each process has its own.
    cores: float = math.inf
    #: Tasks that a worker has, running and in store.
    slots: int = 2


class Cores:
    """The processes that compute now, each at the same share of the cores.

    Time of a core that each has had since the beginning (`had`) grows for all alike,
    so the one that ends first is known without looking at the others.
    """

    def __init__(self, cores: float) -> None:
        self._cores = cores
        self._had = self._now = 0.0
        #: What `had` is at the end of each, and whose it is.
        self._ends: list[tuple[float, int]] = []

    def _share(self) -> float:
        return min(1.0, self._cores / max(1, len(self._ends)))

    def start(self, now: float, process: int, cpu: float) -> None:
        """Let a process compute for so much CPU time."""
        self._go_to(now)
        heapq.heappush(self._ends, (self._had + cpu, process))

    def next_end(self) -> float:
        """Return when the first of them ends, if none starts before."""
        if not self._ends:
            return math.inf
        return self._now + (self._ends[0][0] - self._had) / self._share()

    def end(self) -> tuple[float, int]:
        """Go to the first end; return when it is and whose."""
        self._go_to(self.next_end())
        return self._now, heapq.heappop(self._ends)[1]

    def _go_to(self, now: float) -> None:
        self._had += (now - self._now) * self._share()
        self._now = now


class Stream:
    """One direction of a connection: it sends at most once in each interval.

    What is written meanwhile goes with the next batch (`distributed.batched`).
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last = -math.inf

    def leaves(self, now: float) -> float:
        """Return when what is written now is sent."""
        if now > self._last:
            self._last = max(now, self._last + self._interval)
        return self._last


#: The scheduler among the processes; workers are 0, 1, ...
SCHEDULER = -1


def run(
    cluster: Cluster, tasks: int, seconds: Callable[[int], Sequence[float]]
) -> float:
    """Return the time of so many tasks.

    Parameters
    ----------
    seconds
        Of each task on the worker of this number, in the order in which it gets them;
        what a task waits, or computes on a core of its own, besides `Cluster.worker`.
    """
    workers = range(cluster.workers)
    times = [itertools.cycle(seconds(worker)) for worker in workers]
    to_scheduler = [Stream(TO_SCHEDULER) for _ in workers]
    to_worker = [Stream(TO_WORKER) for _ in workers]
    #: Tasks that a worker has, the running one among them; ends not handled yet.
    held, ended = [0] * cluster.workers, deque[int]()
    cores = Cores(cluster.cores)
    #: What comes without a core: when, what happens, and to which worker.
    coming: list[tuple[float, int, int]] = []
    now, left, unhandled = 0.0, tasks, tasks

    def after(when: float, happens: int, worker: int) -> None:
        heapq.heappush(coming, (when, happens, worker))

    for _ in range(cluster.slots):  # the first tasks, as the graph arrives
        for worker in workers[:left]:
            left -= 1
            after(now, GIVEN, worker)
    while unhandled:
        if coming and coming[0][0] <= cores.next_end():
            now, happens, worker = heapq.heappop(coming)
            if happens == GIVEN:
                held[worker] += 1
                if held[worker] == 1:
                    after(now + next(times[worker]), WAITED, worker)
            elif happens == WAITED:
                cores.start(now, worker, cluster.worker)
            else:
                ended.append(worker)
                if len(ended) == 1:
                    cores.start(now, SCHEDULER, cluster.scheduler)
            continue
        now, process = cores.end()
        if process != SCHEDULER:
            after(to_scheduler[process].leaves(now), ENDED, process)
            held[process] -= 1
            if held[process]:
                after(now + next(times[process]), WAITED, process)
            continue
        unhandled -= 1
        worker = ended.popleft()
        if ended:
            cores.start(now, SCHEDULER, cluster.scheduler)
        if left:
            left -= 1
            after(to_worker[worker].leaves(now), GIVEN, worker)
    return now


#: What happens: a worker is given a task, what a task waits for has come, its end is
#: known to the scheduler.
GIVEN, WAITED, ENDED = range(3)
