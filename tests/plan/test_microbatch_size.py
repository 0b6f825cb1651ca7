"""Rows of a microbatch, from what its blocks take."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.plan import microbatch_size as sizes
from dask_infer.plan.facts import BlockFacts, WorkerFacts
from dask_infer.plan.microbatch_size import FEW_ROWS, MOST_ROWS, OVERHEAD, ROWS
from dask_infer.plan.plan_pipeline import plan_pipeline


@pytest.mark.parametrize(
    ("overhead", "per_row", "rows"),
    [
        (1.0, 1.0, 20),
        (1.0, 0.5, 39),
        (0.001, 1.0, 1),
        (0.0, 1.0, 1),
        (1.0, 1e-6, MOST_ROWS),
        (1.0, 0.0, MOST_ROWS),
    ],
)
def test_table_of_microbatches(overhead, per_row, rows):
    assert sizes.fewest_rows(overhead, per_row) == rows


@given(st.integers(1, 10**6), st.integers(1, 10**4))
@settings(max_examples=100, deadline=None)
def test_a_microbatch_is_the_smallest_under_a_twentieth(overhead, per_row):
    rows = sizes.fewest_rows(overhead, per_row)
    full = rows == MOST_ROWS
    assert full or 20 * overhead < overhead + rows * per_row
    fewer = rows - 1
    assert not fewer or 20 * overhead >= overhead + fewer * per_row


@pytest.mark.parametrize(
    ("fewer", "more", "line"),
    [
        (6.0, 20.0, (4.0, 1.0)),
        (2.0, 16.0, (0.0, 1.0)),
        # Timings that scatter: neither part is ever negative.
        (3.0, 2.0, (3.0, 0.0)),
        (1.0, 29.0, (0.0, 2.0)),
    ],
)
def test_the_fixed_part_of_a_forward(fewer, more, line):
    assert sizes.fixed_and_per_row(fewer, more) == line


def test_weights_that_are_read_once_make_larger_microbatches():
    # 16 rows take little longer than two: their weights are read once.
    fixed, per_row = sizes.fixed_and_per_row(0.011, 0.025)
    assert sizes.fewest_rows(0.001, 0.01) == 2
    assert sizes.fewest_rows(0.001 + fixed, per_row) in (190, 191)


def measured(*timings):
    """Blocks of these fixed seconds, and seconds a row."""
    blocks = [
        BlockFacts(f"{n}", 1000, fixed + ROWS * per_row)
        for n, (fixed, per_row) in enumerate(timings)
    ]
    fewer = tuple(fixed + FEW_ROWS * per_row for fixed, per_row in timings)
    return blocks, fewer


def rows_for(*timings):
    blocks, fewer = measured(*timings)
    plan = plan_pipeline(blocks, [WorkerFacts("a"), WorkerFacts("b")], 2)
    return sizes.microbatch_rows(plan, fewer)


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
