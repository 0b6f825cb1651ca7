"""Rows of a microbatch: enough that what does not grow with them is a small share."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from dask_infer.plan.stage_plan import StagePlan

#: Rows of the two forwards of each block that are timed: what does not grow with them
#: is the cost of no row.
FEW_ROWS, ROWS = 2, 16
#: Seconds that a microbatch costs a stage whatever its size: messages, thread, queue
#: (benchmarks/transport).
OVERHEAD = 1e-3
#: Most of a microbatch's time that its fixed cost may take. With a tenth, 30 rows of a
#: transformer took 1.11 times the CPU of whole replicas, with a twentieth, 48 rows,
#: 1.02 (benchmarks/pipeline).
FIXED_SHARE = 0.05
#: Most rows of a microbatch where nothing limits them.
MOST_ROWS = 1024


def microbatch_rows(plan: StagePlan, fewer: Sequence[float]) -> int:
    """Return the rows of a microbatch, by the slowest stage.

    Parameters
    ----------
    fewer
        Seconds of each block, or of a shard of it, at `FEW_ROWS` rows.
    """
    slow = max(plan.stages, key=lambda stage: stage.seconds)
    few = sum(fewer[slow.start : slow.stop])
    fixed, per_row = fixed_and_per_row(few, slow.seconds)
    return fewest_rows(OVERHEAD + fixed, per_row)


def fewest_rows(overhead: float, seconds_per_row: float) -> int:
    """Return the fewest rows whose fixed cost is under `FIXED_SHARE` of the whole.

    Parameters
    ----------
    overhead
        Seconds that a microbatch costs whatever its size: message, launch, thread.
    seconds_per_row
        Seconds that a row adds, on the slowest stage.
    """
    if seconds_per_row <= 0:
        return MOST_ROWS
    rows = floor(overhead * (1 / FIXED_SHARE - 1) / seconds_per_row) + 1
    return min(rows, MOST_ROWS)


def fixed_and_per_row(few: float, more: float) -> tuple[float, float]:
    """Return the fixed seconds of a forward and those of a row, from two timings.

    Not all of a forward grows with its rows: kernels are launched and weights are read
    once. That is part of the overhead of `fewest_rows`. The time of a few rows divided
    by their number would count it as the cost of a row, and plan microbatches of one.

    Parameters
    ----------
    few, more
        Seconds of forwards of `FEW_ROWS` and of `ROWS` rows.
    """
    per_row = max(0.0, (more - few) / (ROWS - FEW_ROWS))
    return max(0.0, few - FEW_ROWS * per_row), per_row
