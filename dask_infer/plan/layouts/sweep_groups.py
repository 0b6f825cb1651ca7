"""The layer groups of a sweep: how many, where they are cut, and which of them stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dask_infer.errors import PlacementError
from dask_infer.plan.balance import balance
from dask_infer.plan.facts import BlockFacts, WorkerFacts
from dask_infer.plan.infeasible import SMALLER, filled
from dask_infer.plan.units import in_bytes

#: Groups in memory at a time: the first, which stays for the rows that come, the one
#: that runs, and the one that is read meanwhile.
RESIDENT = 3


def plan_groups(
    blocks: Sequence[BlockFacts],
    room: float,
    groups: int | Literal["auto"] | Sequence[str] = "auto",
) -> tuple[int, ...]:
    """Return the bounds of the groups: as few as fit beside each other, of equal bytes.

    Parameters
    ----------
    blocks
        The chain, in order; its `seconds` are not read.
    room
        Bytes that the groups in memory may take together.
    groups
        A number, "auto", or names: then the chain was cut there and nowhere else.
    """
    if not isinstance(groups, (int, str)):
        return tuple(range(len(blocks) + 1))
    if groups == "auto":
        total = sum(block.nbytes for block in blocks)
        bare = [BlockFacts(block.name, block.nbytes, 0.0) for block in blocks]
        groups = 1 if total <= room else len(filled(bare, room / RESIDENT)) - 1
    # Even bytes: the slowest "worker" of equal ones has as few as can be.
    even = [BlockFacts(b.name, b.nbytes, float(b.nbytes)) for b in blocks]
    slots = [WorkerFacts(f"group {number}") for number in range(int(groups))]
    return tuple(balance(even, slots, len(slots)).bounds)


def leading_groups(sizes: Sequence[int], room: float) -> int:
    """Return how many of the first groups can stay beside the two that are in use.

    Groups are used in a cycle, where least recently used would always be evicted just
    before its turn: the first ones stay, and the others pass through the same room.
    """
    if sum(sizes) <= room:
        return len(sizes)
    kept = 0
    while kept < len(sizes):
        passing = sizes[kept + 1 :]
        pairs = map(sum, zip(passing, [*passing[1:], 0], strict=True))
        if sum(sizes[: kept + 1]) + max(pairs, default=0) > room:
            break
        kept += 1
    return kept


def check_blocks(
    model: str, blocks: Sequence[BlockFacts], limit: float, whose: str
) -> None:
    """Raise `PlacementError` for a block that alone is larger than the limit.

    Parameters
    ----------
    limit
        Most bytes of models in this process.
    whose
        Whose limit that is.
    """
    block = max(blocks, key=lambda block: block.nbytes)
    if block.nbytes > limit:
        raise PlacementError(
            f'block "{block.name}" of model "{model}" needs {in_bytes(block.nbytes)} '
            f"and cannot be cut; {whose} has {in_bytes(limit)} for models: {SMALLER}"
        )
