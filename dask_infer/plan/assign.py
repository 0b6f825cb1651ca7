"""Stages between cuts that the user named, given workers.

Whether they fit is decided exactly: the largest stage on the largest worker, the next
on the next; if that does not fit, nothing does. Which worker each gets is a bottleneck
assignment: the smallest time under which stages and workers can still be matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dask_infer.plan.facts import BlockFacts, Link, WorkerFacts, need
from dask_infer.plan.infeasible import no_workers, stage_fits_nowhere, too_few_workers
from dask_infer.plan.stage_plan import StagePlan, stage_plan


def assign(
    blocks: Sequence[BlockFacts],
    workers: Sequence[WorkerFacts],
    cuts: Sequence[int],
    link: Link | None = None,
) -> StagePlan:
    """Give each stage between given cuts a worker.

    Parameters
    ----------
    blocks
        The chain, in order.
    workers
        The workers that are free.
    cuts
        The first block of each stage but the first one, rising.
    link
        The connection between two stages.

    Raises
    ------
    ValueError
        If the cuts do not rise, or lie outside of the chain.
    PlacementError
        If a stage fits nowhere, or not beside the others.
    """
    bounds = [0, *cuts, len(blocks)]
    if any(start >= stop for start, stop in pairwise(bounds)):
        raise ValueError(
            f"cuts {list(cuts)} must rise, from 1 to at most {len(blocks) - 1}"
        )
    stages = parts(blocks, bounds)
    if not workers:
        raise no_workers()
    if len(workers) < len(stages):
        raise too_few_workers(workers, len(stages))
    falling = sorted(range(len(stages)), key=lambda index: -need(stages[index]))
    free = sorted(workers, key=lambda worker: (-worker.room, -worker.speed))
    for worker, index in zip(free, falling, strict=False):
        if worker.room < need(stages[index]):
            raise stage_fits_nowhere(
                stages[index], workers, index, len(stages), left=worker
            )
    taken = _fastest(stages, falling, free)
    chosen = [free[place] for _, place in sorted(zip(falling, taken, strict=True))]
    return stage_plan(blocks, bounds, chosen, link or Link())


def count_replicas(
    blocks: Sequence[BlockFacts],
    workers: Sequence[WorkerFacts],
    bounds: Sequence[int],
    shards: int = 1,
) -> int:
    """Return how many replicas with these bounds the workers can hold side by side.

    Parameters
    ----------
    blocks
        What each of the shards of a block takes.
    shards
        Workers of each stage.
    """
    needs = sorted(map(need, parts(blocks, bounds)), reverse=True)
    rooms = sorted((worker.room for worker in workers), reverse=True)
    each = len(needs) * shards
    replicas = len(rooms) // each
    while replicas and not all(
        rooms[place] >= needs[place // (replicas * shards)]
        for place in range(replicas * each)
    ):
        replicas -= 1
    return replicas


def parts(
    blocks: Sequence[BlockFacts], bounds: Sequence[int]
) -> list[Sequence[BlockFacts]]:
    """Return the blocks of each stage."""
    return [blocks[start:stop] for start, stop in pairwise(bounds)]


def _fastest(
    stages: Sequence[Sequence[BlockFacts]],
    falling: Sequence[int],
    free: Sequence[WorkerFacts],
) -> list[int]:
    """Match stages to workers under the least time for which there is a match."""
    needs = [need(stages[index]) for index in falling]
    seconds = [sum(block.seconds for block in stages[index]) for index in falling]
    limits = sorted({s / worker.speed for s in set(seconds) for worker in free})
    low, high = 0, len(limits) - 1
    best: list[int] | None = None
    while low <= high:
        middle = (low + high) // 2
        able = [
            [
                at
                for at, worker in enumerate(free)
                if nbytes <= worker.room and time / worker.speed <= limits[middle]
            ]
            for nbytes, time in zip(needs, seconds, strict=True)
        ]
        found = _match(able)
        if found is None:
            low = middle + 1
        else:
            best, high = found, middle - 1
    assert best is not None
    return best


def _match(able: Sequence[Sequence[int]]) -> list[int] | None:
    """Match each place to one of the workers it can have, by augmenting paths.

    A worker that is free goes first, so where it can the largest stage sits on the
    largest worker.
    """
    holder: dict[int, int] = {}

    def settle(place: int, seen: set[int]) -> bool:
        untried = [worker for worker in able[place] if worker not in seen]
        for worker in untried:
            if worker not in holder:
                holder[worker] = place
                return True
        for worker in untried:
            if worker not in seen:
                seen.add(worker)
                if settle(holder[worker], seen):
                    holder[worker] = place
                    return True
        return False

    if not all(settle(place, set()) for place in range(len(able))):
        return None
    return [worker for _, worker in sorted((p, w) for w, p in holder.items())]
