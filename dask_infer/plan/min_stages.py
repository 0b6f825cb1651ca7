"""The fewest stages that fit, by memory alone.

`reach[used]` is the furthest block that these workers can hold a chain up to. Further
is never worse here, so one number a state is enough, and the first count of workers
that reaches the end is the fewest.
"""

from __future__ import annotations

from collections.abc import Sequence

from dask_infer.plan.facts import BlockFacts, WorkerFacts, need
from dask_infer.plan.infeasible import block_fits_nowhere, no_workers, too_large
from dask_infer.plan.worker_classes import Used, uses, worker_classes


def min_stages(blocks: Sequence[BlockFacts], workers: Sequence[WorkerFacts]) -> int:
    """Return the least number of workers that hold a chain in their memory.

    Raises
    ------
    PlacementError
        If all workers together cannot hold it, one stage each.
    """
    if not workers:
        raise no_workers()
    refusal = block_fits_nowhere(blocks, workers)
    if refusal is not None:
        raise refusal
    for stages in range(1, min(len(blocks), len(workers)) + 1):
        if reach(blocks, workers, stages) == len(blocks):
            return stages
    raise too_large(blocks, workers)


def reach(
    blocks: Sequence[BlockFacts], workers: Sequence[WorkerFacts], stages: int
) -> int:
    """Return how many leading blocks fit into up to `stages` workers."""
    equal = [WorkerFacts(w.address, w.memory, host=w.host) for w in workers]
    classes = worker_classes(equal, stages, len(blocks), need(blocks))
    starts = range(len(blocks))
    ends = [[_end(blocks, start, which.room) for start in starts] for which in classes]
    furthest: dict[Used, int] = {}
    for used in uses(classes, stages):
        at = 0
        for which, number in enumerate(used):
            if number:
                start = furthest[(*used[:which], number - 1, *used[which + 1 :])]
                at = max(at, start if start == len(blocks) else ends[which][start])
        furthest[used] = at
    return max(furthest.values())


def _end(blocks: Sequence[BlockFacts], start: int, room: float) -> int:
    """Return the end of the longest stage that begins at `start`."""
    nbytes = activations = 0
    for stop in range(start, len(blocks)):
        nbytes += blocks[stop].nbytes
        activations = max(activations, blocks[stop].activation_bytes)
        if nbytes + activations > room:
            return stop
    return len(blocks)
