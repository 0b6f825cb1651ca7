"""Rows of a microbatch, from what its blocks take."""

from __future__ import annotations

from dask_infer.pipeline.scheduler.placement import WorkerState
from dask_infer.pipeline.scheduler.planning import (
    FEW_ROWS,
    MOST_ROWS,
    OVERHEAD,
    ROWS,
    Measured,
    _planned,
)
from dask_infer.plan.facts import BlockFacts

WORKERS = [WorkerState("a"), WorkerState("b")]


def measured(*timings):
    """Blocks of these fixed seconds, and seconds a row."""
    blocks = [
        BlockFacts(f"{n}", 1000, fixed + ROWS * per_row)
        for n, (fixed, per_row) in enumerate(timings)
    ]
    fewer = tuple(fixed + FEW_ROWS * per_row for fixed, per_row in timings)
    return Measured(tuple(blocks), fewer, "by hand")


def rows_for(*timings):
    return _planned(measured(*timings), WORKERS, 2, "auto").microbatch


def test_what_a_microbatch_costs_anyway_is_a_twentieth_of_it():
    per_row = OVERHEAD / 10
    assert rows_for((0, per_row), (0, per_row)) == 191


def test_what_a_forward_costs_anyway_is_spread_over_rows():
    # 1 ms of messages and 9.5 of reading weights; 10 ms a row.
    assert rows_for((0.0095, 0.01), (0.0095, 0.01)) == 20
    assert rows_for((0.0, 0.01), (0.0, 0.01)) == 2


def test_the_slowest_stage_decides():
    assert rows_for((0.0095, 0.01), (0, 1e-4)) == 20


def test_rows_that_take_no_time_are_limited():
    assert rows_for((0.001, 0.0), (0.001, 0.0)) == MOST_ROWS


def test_rows_are_as_the_user_says():
    assert _planned(measured((0, 1), (0, 1)), WORKERS, 2, 7).microbatch == 7
