"""Stages in shards: what each shard takes, and which workers share a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from dask_infer.errors import PlacementError
from dask_infer.plan.facts import BlockFacts, ChainFacts, WorkerFacts
from dask_infer.plan.infeasible import no_workers, too_few_for_shards
from dask_infer.plan.plan_pipeline import plan_pipeline
from dask_infer.plan.stage_plan import StagePlan
from dask_infer.plan.units import count, in_bytes

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


def in_shards(blocks: Sequence[BlockFacts], shards: int) -> list[BlockFacts]:
    """Return what blocks take on each of the workers that share them.

    Seconds are projected: the time of weights that are divided is, too, and each
    exchange takes `EXCHANGE`.
    """
    return [_in_shards(block, shards) for block in blocks]


def _in_shards(block: BlockFacts, shards: int) -> BlockFacts:
    nbytes = block.nbytes - block.divisible + ceil(block.divisible / shards)
    share = nbytes / block.nbytes if block.nbytes else 1.0
    return replace(
        block,
        nbytes=nbytes,
        seconds=share * block.seconds + EXCHANGE * block.exchanges,
        parameters=ceil(share * block.parameters),
    )


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
    stages: int | Literal["auto"] | Sequence[int],
    shards: int | Literal["auto"],
) -> ShardPlan:
    """Plan the stages of one replica whose tensors are divided among shards.

    Parameters
    ----------
    blocks
        The chain of blocks, whole.
    workers
        Those that could hold a shard.
    stages
        As of `plan_pipeline`.
    shards
        A number; ``"auto"`` for the fewest that fit, two at least.

    Raises
    ------
    PlacementError
        If it does not fit; says what, how large it is, and what would help.
    """
    if not workers:
        raise no_workers()
    tried = range(2, len(workers) + 1) if shards == "auto" else (int(shards),)
    refusal = too_few_for_shards(workers, 2 if shards == "auto" else int(shards))
    for number in tried:
        # The workers of one host are quicker together.
        for near in (True, False):
            try:
                return _plan(blocks, workers, stages, number, shards, near=near)
            except PlacementError as error:
                if len(workers) >= number:
                    refusal = error
    raise refusal


def _plan(
    blocks: Sequence[BlockFacts],
    workers: Sequence[WorkerFacts],
    stages: int | Literal["auto"] | Sequence[int],
    shards: int,
    asked: int | Literal["auto"],
    *,
    near: bool,
) -> ShardPlan:
    found = teams(workers, shards, near=near)
    if not found:
        raise too_few_for_shards(workers, shards)
    facts = [team_facts(team, number) for number, team in enumerate(found)]
    members = dict(zip((each.address for each in facts), found, strict=True))
    plan = plan_pipeline(in_shards(blocks, shards), facts, stages)
    whole = in_bytes(sum(block.nbytes for block in blocks))
    each = in_bytes(max(stage.nbytes for stage in plan.stages))
    how = "the fewest that fit" if asked == "auto" else "as asked"
    why = f"{count(shards, 'shard')} a stage: {how}; each holds {each} of {whole}."
    named = tuple(
        replace(stage, worker=" + ".join(w.address for w in members[stage.worker]))
        for stage in plan.stages
    )
    return ShardPlan(
        StagePlan(named, (*plan.reasons, why)),
        shards,
        tuple(w.address for stage in plan.stages for w in members[stage.worker]),
    )


def teams(
    workers: Sequence[WorkerFacts], shards: int, *, near: bool
) -> list[tuple[WorkerFacts, ...]]:
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
        found += [tuple(members[start : start + shards]) for start in starts]
    return found


def team_facts(team: Sequence[WorkerFacts], number: int) -> WorkerFacts:
    """Return a group of workers as if it were one: as good as the worst of them."""
    limits = [w.memory for w in team if w.memory is not None]
    hosts = {worker.host for worker in team}
    return WorkerFacts(
        f"team {number}",
        min(limits) if limits else None,
        min(worker.speed for worker in team),
        hosts.pop() if len(hosts) == 1 else "",
    )
