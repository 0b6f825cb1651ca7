"""Stages in shards: what each shard takes, and which workers share a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from dask_infer.errors import PlacementError
from dask_infer.plan.facts import BlockFacts, WorkerFacts
from dask_infer.plan.infeasible import too_few_workers
from dask_infer.plan.plan_pipeline import plan_pipeline
from dask_infer.plan.stage_plan import StagePlan
from dask_infer.plan.units import in_bytes
from dask_infer.spec import Layout

#: Seconds of one exchange between shards, whatever its size (benchmarks/tensor).
EXCHANGE = 2e-3


def share_of_shard(block: BlockFacts, shards: int) -> float:
    """Return what part of a block's weights each of its shards holds."""
    divided = block.divisible - ceil(block.divisible / shards)
    return 1 - divided / block.nbytes if block.nbytes else 1.0


def in_shards(blocks: Sequence[BlockFacts], shards: int) -> list[BlockFacts]:
    """Return what blocks take on each of the workers that share them.

    Seconds are projected: the time of weights that are divided is, too, and each
    exchange takes `EXCHANGE`.
    """
    if shards == 1:
        return list(blocks)
    return [
        replace(
            block,
            nbytes=block.nbytes - block.divisible + ceil(block.divisible / shards),
            seconds=share_of_shard(block, shards) * block.seconds
            + EXCHANGE * block.exchanges,
            parameters=ceil(share_of_shard(block, shards) * block.parameters),
        )
        for block in blocks
    ]


def plan_layout(
    layout: Layout, blocks: Sequence[BlockFacts], workers: Sequence[WorkerFacts]
) -> StagePlan:
    """Plan the stages of one replica, whose tensors shards may divide.

    Parameters
    ----------
    layout
        Of stages ``"auto"`` is the fewest that fit, of shards too, two at least.
    blocks
        The chain, whole; if the layout names its cuts, each block is a stage.
    workers
        Those that could hold a stage, or a shard.

    Raises
    ------
    PlacementError
        If it does not fit; says what, how large it is, and what would help.
    """
    stages, shards = layout.stages, layout.shards
    if isinstance(stages, tuple):
        stages = len(blocks)
    if shards == 1:
        return plan_pipeline(blocks, workers, stages)
    tried = range(2, max(2, len(workers)) + 1) if shards == "auto" else (shards,)
    refusal = too_few_workers(workers, tried[0], "shard")
    why = "the fewest that fit" if shards == "auto" else "as asked"
    for number in tried:
        parts = in_shards(blocks, number)
        # The workers of one host are quicker together.
        for near in (True, False):
            found = teams(workers, number, near=near)
            if not found:
                continue
            try:
                plan = plan_pipeline(parts, found, stages)
            except PlacementError as error:
                refusal = error
                continue
            whole = in_bytes(sum(block.nbytes for block in blocks))
            each = in_bytes(max(stage.nbytes for stage in plan.stages))
            line = f"{number} shards a stage: {why}; each holds {each} of {whole}."
            return replace(plan, reasons=(*plan.reasons, line))
    raise refusal


def teams(
    workers: Sequence[WorkerFacts], shards: int, *, near: bool
) -> list[WorkerFacts]:
    """Return disjoint groups of workers that are most alike, the largest first.

    Each is as if it were one worker, as good as the worst.

    Parameters
    ----------
    near
        Of one host each.
    """
    hosts: dict[str, list[WorkerFacts]] = {}
    for worker in workers:
        hosts.setdefault(worker.host if near else "", []).append(worker)
    found = []
    for members in hosts.values():
        members.sort(key=lambda w: (-w.room, -w.speed, w.host, w.address))
        starts = range(0, len(members) - shards + 1, shards)
        found += [_team(members[start : start + shards]) for start in starts]
    return found


def _team(workers: Sequence[WorkerFacts]) -> WorkerFacts:
    members = tuple(worker.address for worker in workers)
    hosts = {worker.host for worker in workers}
    return WorkerFacts(
        " + ".join(members),
        min((w.memory for w in workers if w.memory is not None), default=None),
        min(worker.speed for worker in workers),
        hosts.pop() if len(hosts) == 1 else "",
        members=members,
    )
