"""Stages in shards: what each shard takes, and which workers share a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from dask_infer.errors import PlacementError
from dask_infer.plan.facts import BlockFacts, ChainFacts, Link, WorkerFacts
from dask_infer.plan.infeasible import too_few_workers
from dask_infer.plan.plan_pipeline import plan_pipeline
from dask_infer.plan.stage_plan import StagePlan
from dask_infer.plan.units import in_bytes
from dask_infer.spec import Layout

#: Seconds of one exchange between shards, whatever its size (benchmarks/tensor).
EXCHANGE = 2e-3


@dataclass(frozen=True)
class ShardPlan:
    """The stages of one replica, each on as many workers as it has shards."""

    #: Bytes and seconds of a stage are those of one of its shards.
    stages: StagePlan
    shards: int
    #: Workers of all shards of all stages, in order.
    workers: tuple[str, ...]


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


def chain_in_shards(chain: ChainFacts, shards: int) -> ChainFacts:
    """Return a chain's facts for each of the workers that share its blocks."""
    if shards == 1:
        return chain
    fewer = None
    if chain.fewer is not None:
        few = [
            replace(b, seconds=s)
            for b, s in zip(chain.blocks, chain.fewer, strict=True)
        ]
        fewer = tuple(block.seconds for block in in_shards(few, shards))
    return replace(chain, blocks=tuple(in_shards(chain.blocks, shards)), fewer=fewer)


def plan_shards(
    blocks: Sequence[BlockFacts],
    workers: Sequence[WorkerFacts],
    stages: int | Literal["auto"],
    shards: int | Literal["auto"],
    link: Link | None = None,
) -> ShardPlan:
    """Plan the stages of one replica, whose tensors shards may divide.

    Parameters
    ----------
    blocks
        The chain of blocks, whole.
    workers
        Those that could hold a shard.
    stages
        As of `plan_pipeline`.
    shards
        A number, 1 for whole stages; ``"auto"`` for the fewest that fit, two at least.
    link
        The connection between two stages.

    Raises
    ------
    PlacementError
        If it does not fit; says what, how large it is, and what would help.
    """
    if shards == 1:
        plan = plan_pipeline(blocks, workers, stages, link)
        return ShardPlan(plan, 1, plan.workers)
    tried = range(2, max(2, len(workers)) + 1) if shards == "auto" else (shards,)
    refusal = too_few_workers(workers, tried[0], "shard")
    why = "the fewest that fit" if shards == "auto" else "as asked"
    for number in tried:
        parts = in_shards(blocks, number)
        # The workers of one host are quicker together.
        for near in (True, False):
            found = {team.address: team for team in teams(workers, number, near=near)}
            if not found:
                continue
            try:
                plan = plan_pipeline(parts, [*found.values()], stages, link)
            except PlacementError as error:
                refusal = error
                continue
            whole = in_bytes(sum(block.nbytes for block in blocks))
            each = in_bytes(max(stage.nbytes for stage in plan.stages))
            line = f"{number} shards a stage: {why}; each holds {each} of {whole}."
            return ShardPlan(
                replace(plan, reasons=(*plan.reasons, line)),
                number,
                tuple(m for team in plan.workers for m in found[team].members),
            )
    raise refusal


def plan_layout(
    layout: Layout,
    blocks: Sequence[BlockFacts],
    workers: Sequence[WorkerFacts],
    link: Link | None = None,
) -> ShardPlan:
    """Plan one replica as a layout asks; see `plan_shards`.

    Parameters
    ----------
    blocks
        The chain; if the layout names its cuts, each block is a stage.
    """
    stages = len(blocks) if isinstance(layout.stages, tuple) else layout.stages
    return plan_shards(blocks, workers, stages, layout.shards, link)


@dataclass(frozen=True)
class Team(WorkerFacts):
    """The workers of a stage's shards as if they were one: as good as the worst."""

    members: tuple[str, ...] = ()

    @classmethod
    def of(cls, workers: Sequence[WorkerFacts]) -> Team:
        """Return a team of these workers."""
        members = tuple(worker.address for worker in workers)
        hosts = {worker.host for worker in workers}
        return cls(
            " + ".join(members),
            min((w.memory for w in workers if w.memory is not None), default=None),
            min(worker.speed for worker in workers),
            hosts.pop() if len(hosts) == 1 else "",
            members=members,
        )


def teams(workers: Sequence[WorkerFacts], shards: int, *, near: bool) -> list[Team]:
    """Return disjoint groups of workers that are most alike, the largest first.

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
        found += [Team.of(members[start : start + shards]) for start in starts]
    return found
