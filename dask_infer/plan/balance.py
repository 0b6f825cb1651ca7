"""The exact minimum of the slowest stage, under the memory of each worker.

Dynamic programming over prefixes of the chain and over how many workers of each class
are in use (`best[used][j] = min over i, class of max(best[used - class][i],
time(i, j) / speed, cut(i))`). Two passes: the first finds the slowest stage's seconds;
the second, among all layouts that keep them, the one with the fewest cut bytes, and
among those the most even. One pass could not: a prefix that is slower than need be may
still be the better one when a later stage is slower yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TypeVar

from dask_infer.plan.facts import BlockFacts, WorkerFacts, need, transfer_seconds
from dask_infer.plan.infeasible import no_cut_fits, too_few_blocks, too_few_workers
from dask_infer.plan.stage_plan import StagePlan, stage_plan
from dask_infer.plan.worker_classes import Used, WorkerClass, uses, worker_classes

T = TypeVar("T")

#: Cut bytes, unevenness, where the last stage starts, its class. The first two decide.
_Step = tuple[int, float, int, int]


def balance(
    blocks: Sequence[BlockFacts],
    workers: Sequence[WorkerFacts],
    stages: int,
) -> StagePlan:
    """Cut a chain into stages and place them so that the slowest is as fast as can be.

    A stage is as slow as its blocks on its worker or as its message from the stage
    before, whichever takes longer: the two overlap. Ties go to fewer cut bytes.

    Exact unless classes of workers are merged: see `worker_classes.STEPS`.

    Each stage holds a block at least and has a worker to itself.

    Raises
    ------
    PlacementError
        If there are too few blocks or workers, or if no cut fits their memory.
    """
    if len(blocks) < stages:
        raise too_few_blocks(blocks, stages)
    if len(workers) < stages:
        raise too_few_workers(workers, stages)
    search = _Search(blocks, workers, stages)
    slowest = search.slowest()
    if slowest == inf:
        raise no_cut_fits(blocks, workers, stages)
    bounds, classes = search.cheapest(slowest)
    chosen = _neighbours([search.classes[which] for which in classes])
    return stage_plan(blocks, bounds, chosen)


@dataclass
class _Search:
    """The tables of one search."""

    blocks: Sequence[BlockFacts]
    workers: Sequence[WorkerFacts]
    stages: int

    def __post_init__(self) -> None:
        length = len(self.blocks)
        self.classes = worker_classes(
            self.workers, self.stages, length, need(self.blocks)
        )
        self.uses = list(uses(self.classes, self.stages))
        self.cuts = [0, *(block.cut_bytes for block in self.blocks[1:])]
        self.hops = [*map(transfer_seconds, self.cuts)]
        #: For each class and end of a stage: its seconds with 1, 2, ... blocks, as long
        #: as they fit.
        self.times = [
            [_times(self.blocks, stop, which) for stop in range(length + 1)]
            for which in self.classes
        ]

    def slowest(self) -> float:
        """Seconds of the slowest stage of the best layout; infinite if none fits."""
        length = len(self.blocks)
        best = self._table([0.0] + [inf] * length, inf, self._improve)
        return min(
            (row[length] for used, row in best.items() if sum(used) == self.stages),
            default=inf,
        )

    def _table(
        self, first: list[T], nothing: T, add: Callable[[list[T], list[T], int], None]
    ) -> dict[Used, list[T]]:
        """Return for each use of workers its best layout of each prefix of the chain.

        Parameters
        ----------
        first
            Those of no workers.
        add
            Improves a row by layouts whose last stage is on a class of workers.
        """
        best = {self.uses[0]: first}
        for used in self.uses[1:]:
            row = [nothing] * len(first)
            for which, number in enumerate(used):
                if number:
                    before = (*used[:which], number - 1, *used[which + 1 :])
                    add(row, best[before], which)
            best[used] = row
        return best

    def _improve(self, row: list[float], before: list[float], which: int) -> None:
        hops, times = self.hops, self.times[which]
        for stop in range(1, len(row)):
            least, start = row[stop], stop
            for seconds in times[stop]:
                # Longer stages are only slower.
                if seconds >= least:
                    break
                start -= 1
                worst = before[start]
                if worst < seconds:
                    worst = seconds
                if worst < hops[start]:
                    worst = hops[start]
                if worst < least:
                    least = worst
            row[stop] = least

    def cheapest(self, slowest: float) -> tuple[list[int], list[int]]:
        """Bounds and classes of the layout with the fewest cut bytes."""
        length = len(self.blocks)
        first: list[_Step | None] = [(0, 0.0, 0, 0), *[None] * length]
        best = self._table(first, None, partial(self._cheapen, slowest))
        ends = [
            (step[:2], used)
            for used, row in best.items()
            if sum(used) == self.stages and (step := row[length]) is not None
        ]
        return _trace(best, min(ends)[1], length)

    def _cheapen(
        self,
        slowest: float,
        row: list[_Step | None],
        before: list[_Step | None],
        which: int,
    ) -> None:
        for stop in range(1, len(row)):
            least, start = row[stop], stop
            for seconds in self.times[which][stop]:
                if seconds > slowest:
                    break
                start -= 1
                prefix = before[start]
                if prefix is None or self.hops[start] > slowest:
                    continue
                cuts = prefix[0] + self.cuts[start]
                uneven = prefix[1] + seconds * seconds
                if least is None or (cuts, uneven) < least[:2]:
                    least = (cuts, uneven, start, which)
            row[stop] = least


def _times(
    blocks: Sequence[BlockFacts], stop: int, workers: WorkerClass
) -> list[float]:
    """Seconds of the stages that end before `stop` and fit, the shortest first."""
    times: list[float] = []
    nbytes = activations = 0
    seconds = 0.0
    for block in reversed(blocks[:stop]):
        nbytes += block.nbytes
        activations = max(activations, block.activation_bytes)
        if nbytes + activations > workers.room:
            break
        seconds += block.seconds
        times.append(seconds / workers.speed)
    return times


def _trace(
    best: dict[Used, list[_Step | None]], used: Used, stop: int
) -> tuple[list[int], list[int]]:
    bounds, classes = [stop], []
    while stop:
        step = best[used][stop]
        assert step is not None
        _, _, stop, which = step
        bounds.append(stop)
        classes.append(which)
        used = (*used[:which], used[which] - 1, *used[which + 1 :])
    return bounds[::-1], classes[::-1]


def _neighbours(classes: Sequence[WorkerClass]) -> list[WorkerFacts]:
    """Pick a worker of each class, on the host of the stage before if it has one."""
    free = {id(which): list(which.workers) for which in classes}
    chosen: list[WorkerFacts] = []
    for which in classes:
        group = free[id(which)]
        near = [w for w in group if chosen and w.host == chosen[-1].host]
        worker = (near or group)[0]
        group.remove(worker)
        chosen.append(worker)
    return chosen
