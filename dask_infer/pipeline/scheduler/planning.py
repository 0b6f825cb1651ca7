"""The stages of a group: how many, which blocks each holds, and rows of a microbatch.

The plan looks at every worker that could hold a stage, busy or not: which of them do is
found afterwards, and a plan made for the few that are free at this moment would stay.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dask_infer.errors import PlacementError
from dask_infer.pipeline.scheduler.placement import WorkerState, remedy
from dask_infer.plan import stage_table as table
from dask_infer.plan.facts import BlockFacts, WorkerFacts
from dask_infer.plan.plan_pipeline import plan_pipeline
from dask_infer.plan.schedule import fixed_and_per_row, microbatch
from dask_infer.plan.stages import StagePlan

if TYPE_CHECKING:
    from dask_infer.pipeline.scheduler.placer import Placer

#: Seconds that a microbatch costs a stage whatever its size: messages, thread, queue
#: (benchmarks/transport).
OVERHEAD = 1e-3
#: Rows of the two forwards of each block that are timed: what does not grow with them
#: is no row's cost.
FEW_ROWS, ROWS = 2, 16
#: Most of a microbatch's time that may be fixed. With a tenth, 30 rows of a transformer
#: took 1.11 times the CPU of whole replicas, with 48 rows 1.02 (benchmarks/pipeline).
FIXED_SHARE = 0.05
#: Most rows of a microbatch where nobody says.
MOST_ROWS = 1024
#: Seconds between two looks at the workers.
LOOK = 0.1


@dataclass(frozen=True)
class Measured:
    """What a group request found out about the blocks of a chain."""

    #: Their seconds and activations are those of `ROWS` rows.
    blocks: tuple[BlockFacts, ...]
    #: Seconds of each block at `FEW_ROWS` rows; None where bytes stand in for time.
    fewer: tuple[float, ...] | None
    #: What people should know of the figures; may be empty.
    note: str


@dataclass(frozen=True)
class Stages:
    """Where a chain of blocks is cut."""

    #: First block of each stage, and the end of the last.
    bounds: tuple[int, ...]
    #: Bytes of each stage's weights.
    nbytes: tuple[int, ...]
    #: The worker that each stage was planned for, if it is free.
    workers: tuple[str, ...] = ()
    #: Rows of a microbatch; None where the feeders' own policy finds them.
    microbatch: int | None = None
    #: The table of stages and why they are so, to be read.
    told: str = ""


async def plan_stages(placer: Placer) -> Stages:
    """Return the stages of a group, once there are workers that could hold them.

    Raises
    ------
    PlacementError
        If there are none after the grace.
    """
    spec = placer.spec
    if spec.chain is None:
        own = spec.layout.microbatch
        rows = None if own == "auto" else own
        return Stages((0, 1), (spec.model.nbytes,), microbatch=rows)
    measured = placer.coordinator.measured[spec.key]
    deadline = time.monotonic() + spec.patience.grace
    while True:
        able = [w for w in placer.workers() if w.has(spec.resources)]
        try:
            return _planned(measured, able, spec.layout.stages, spec.layout.microbatch)
        except PlacementError as error:
            if time.monotonic() >= deadline:
                raise PlacementError(
                    f'model "{spec.model.name}": {error} (waited '
                    f"{spec.patience.grace:g} s, infer.placement.grace); "
                    f"{remedy(spec.resources)}"
                ) from error
        await asyncio.sleep(LOOK)


def _planned(
    measured: Measured,
    able: Sequence[WorkerState],
    stages: object,
    rows: object,
) -> Stages:
    blocks = measured.blocks
    workers = [WorkerFacts(w.address, w.memory, host=w.host) for w in able]
    if isinstance(stages, tuple):  # the chain has no other places to be cut at
        plan = plan_pipeline(blocks, workers, tuple(range(1, len(blocks))))[0]
    else:
        assert isinstance(stages, int) or stages == "auto"
        plan = plan_pipeline(blocks, workers, stages)[0]
    size = rows if isinstance(rows, int) else _rows(plan, measured)
    told = f"{table.text(plan)}\n{measured.note}".rstrip()
    if size is not None:
        told += f"\nMicrobatches of {size} rows."
    nbytes = tuple(stage.nbytes for stage in plan.stages)
    return Stages(plan.bounds, nbytes, plan.workers, size, told)


def _rows(plan: StagePlan, measured: Measured) -> int | None:
    """Rows of a microbatch, by the stage that takes the longest; None if not timed."""
    if measured.fewer is None:
        return None
    slow = max(plan.stages, key=lambda stage: stage.seconds)
    fewer = sum(measured.fewer[slow.start : slow.stop])
    fixed, per_row = fixed_and_per_row((FEW_ROWS, fewer), (ROWS, slow.seconds))
    return microbatch(OVERHEAD + fixed, per_row, share=FIXED_SHARE, most=MOST_ROWS)
