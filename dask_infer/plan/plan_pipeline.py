"""A pipeline's layout: facts and the user's layout in, plans and reasons out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from dask_infer.plan.balance import balance
from dask_infer.plan.facts import BlockFacts, WorkerFacts
from dask_infer.plan.min_stages import min_stages
from dask_infer.plan.stage_plan import StagePlan
from dask_infer.plan.units import count, in_bytes, in_seconds


def plan_pipeline(
    blocks: Sequence[BlockFacts],
    workers: Sequence[WorkerFacts],
    stages: int | Literal["auto"] = "auto",
) -> StagePlan:
    """Plan so many stages of one replica, or the fewest that fit.

    Raises
    ------
    PlacementError
        If it does not fit; says what, how large it is, and what would help.
    """
    number = min_stages(blocks, workers) if stages == "auto" else stages
    plan = balance(blocks, workers, number)
    total = in_bytes(sum(stage.nbytes for stage in plan.stages))
    why = "the fewest that fit" if stages == "auto" else "as asked, for"
    line = f"{count(number, 'stage')}: {why} {total} of weights."
    return replace(plan, reasons=(line, _why_balance(plan)))


def _why_balance(plan: StagePlan) -> str:
    """Name the bottleneck."""
    slow = max(
        range(len(plan.stages)),
        key=lambda i: max(plan.stages[i].seconds, plan.stages[i].transfer),
    )
    stage = plan.stages[slow]
    seconds = in_seconds(plan.slowest)
    if stage.transfer > stage.seconds:
        cut = in_bytes(stage.cut_bytes)
        return f"The message into stage {slow} is the slowest: {seconds} for {cut}."
    busy = sum(s.seconds for s in plan.stages) / (len(plan.stages) * plan.slowest or 1)
    return f"Stage {slow} is the slowest: {seconds} a microbatch; mean load {busy:.0%}."
