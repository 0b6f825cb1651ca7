"""Refusals: what fits nowhere, how large it is, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dask_infer.errors import PlacementError
from dask_infer.plan.facts import BlockFacts, WorkerFacts, need
from dask_infer.plan.units import count, in_bytes

SMALLER = 'start workers with more memory, or pass dtype="bfloat16"'


def no_workers() -> PlacementError:
    """No worker is free."""
    return PlacementError("no worker is free to hold a stage: start workers")


def too_few_workers(
    workers: Sequence[WorkerFacts], number: int, what: str = "stage"
) -> PlacementError:
    """Each stage, or each shard of it, has a worker to itself."""
    return PlacementError(
        f"{count(number, what)} need {count(number, 'worker')}, one each, and "
        f"{len(workers)} can hold one: start more workers, or ask for fewer {what}s"
    )


def too_few_blocks(blocks: Sequence[BlockFacts], stages: int) -> PlacementError:
    """Each stage has a block at least."""
    return PlacementError(
        f"the model cannot be cut into {count(stages, 'stage')}: it has "
        f"{count(len(blocks), 'block')}, {span(blocks)}; ask for fewer stages, or for "
        f'stages="auto"'
    )


def block_fits_nowhere(
    blocks: Sequence[BlockFacts], workers: Sequence[WorkerFacts]
) -> PlacementError | None:
    """Return the refusal of the largest block, or None if each fits somewhere."""
    block = max(blocks, key=lambda block: need([block]))
    if need([block]) <= max(worker.room for worker in workers):
        return None
    return PlacementError(
        f'block "{block.name}" needs {in_bytes(need([block]))} '
        f"({in_bytes(block.nbytes)} of weights) and cannot be cut further; "
        f"{largest(workers)}: {SMALLER}"
    )


def no_cut_fits(
    blocks: Sequence[BlockFacts], workers: Sequence[WorkerFacts], stages: int
) -> PlacementError:
    """No cut into so many stages fits: name the block or the stage at fault."""
    refusal = block_fits_nowhere(blocks, workers)
    if refusal is not None:
        return refusal
    bounds = most_even_bytes(blocks, stages)
    parts = [blocks[start:stop] for start, stop in pairwise(bounds)]
    index = max(range(len(parts)), key=lambda i: need(parts[i]))
    return PlacementError(
        f"no cut of {span(blocks)}, {in_bytes(need(blocks))} in all, into "
        f"{count(stages, 'stage')} fits: the {_rooms(workers, stages)}, and even in "
        f"the most even cut stage {index} of {stages}, {span(parts[index])}, needs "
        f"{in_bytes(need(parts[index]))}; {largest(workers)}: ask for more stages, or "
        f"{SMALLER}"
    )


def too_large(
    blocks: Sequence[BlockFacts], workers: Sequence[WorkerFacts]
) -> PlacementError:
    """All workers together are too small."""
    return PlacementError(
        f"the model, {span(blocks)}, needs {in_bytes(need(blocks))} and does not fit "
        f"into {count(len(workers), 'worker')}, one stage each: the "
        f"{_rooms(workers, len(workers))}; {largest(workers)}: start more workers, or "
        f"{SMALLER}"
    )


def most_even_bytes(blocks: Sequence[BlockFacts], stages: int) -> list[int]:
    """Return bounds of up to `stages` stages whose largest is as small as can be."""
    low, high = max(need([block]) for block in blocks), need(blocks)
    while low < high:
        middle = (low + high) // 2
        if len(filled(blocks, middle)) - 1 <= stages:
            high = middle
        else:
            low = middle + 1
    return filled(blocks, low)


def filled(blocks: Sequence[BlockFacts], room: float) -> list[int]:
    """Return bounds of stages that each take as much as fits, a block at least."""
    bounds = [0]
    for stop in range(2, len(blocks) + 1):
        if stop - bounds[-1] > 1 and need(blocks[bounds[-1] : stop]) > room:
            bounds.append(stop - 1)
    return [*bounds, len(blocks)]


def span(blocks: Sequence[BlockFacts]) -> str:
    """Return the names of the first and the last block."""
    if len(blocks) == 1:
        return f'"{blocks[0].name}"'
    return f'"{blocks[0].name}" to "{blocks[-1].name}"'


def largest(workers: Sequence[WorkerFacts]) -> str:
    """Return the most memory that a worker has for models."""
    worker = max(workers, key=lambda worker: worker.room)
    return (
        f"the largest worker, {worker.address}, has {in_bytes(worker.room)} for models"
    )


def _rooms(workers: Sequence[WorkerFacts], stages: int) -> str:
    rooms = sorted((worker.room for worker in workers), reverse=True)[:stages]
    memory = ", ".join(in_bytes(room) for room in rooms[:8])
    more = ", ..." if len(rooms) > 8 else ""
    return f"{count(len(rooms), 'largest worker')} have {memory}{more} for models"
