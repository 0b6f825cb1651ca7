"""Formulas of the schedule, as tables and against a simulation of it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.plan import schedule

whole = st.integers(0, 20)


def simulate(microbatches, ways):
    """When the last microbatch leaves: each way takes one at a time, in order."""
    free = [0] * len(ways)
    leaves = 0
    for _ in range(microbatches):
        leaves = 0
        for at, takes in enumerate(ways):
            leaves = free[at] = max(leaves, free[at]) + takes
    return leaves


@given(st.lists(st.tuples(whole, whole), min_size=1, max_size=6), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_makespan_of_a_simulated_pipeline(stages, microbatches):
    # FACTS 26: sum t + sum c + (M - 1) b.
    seconds, hops = zip(*stages, strict=True)
    ways = [way for stage in stages for way in stage]
    expected = simulate(microbatches, ways)
    assert schedule.makespan(microbatches, seconds, hops) == expected


@pytest.mark.parametrize(
    ("microbatches", "stages", "percent"),
    [(2, 2, 67), (4, 4, 57), (8, 8, 53), (1, 1, 100), (1, 4, 25), (1000, 4, 100)],
)
def test_efficiency(microbatches, stages, percent):
    assert round(100 * schedule.efficiency(microbatches, stages)) == percent
    ideal = microbatches / schedule.makespan(microbatches, [1] * stages)
    assert schedule.efficiency(microbatches, stages) == pytest.approx(ideal)


@pytest.mark.parametrize(
    ("window", "rate"), [(1, 1 / 6), (2, 2 / 6), (3, 1 / 2), (6, 1 / 2)]
)
def test_throughput_is_bound_by_the_window_or_by_the_slowest(window, rate):
    # FACTS 27: min(1 / b, W / L).
    assert schedule.throughput(window, [1, 2, 1], [1, 1]) == rate


def test_the_default_window_is_twice_the_stages():
    assert [schedule.window(stages) for stages in (1, 2, 4)] == [2, 4, 8]


@pytest.mark.parametrize(
    ("overhead", "per_row", "most", "rows"),
    [
        (1.0, 1.0, None, 10),
        (1.0, 0.5, None, 19),
        (0.001, 1.0, None, 1),
        (0.0, 1.0, None, 1),
        (1.0, 1.0, 4, 4),
        (1.0, 0.0, 256, 256),
    ],
)
def test_table_of_microbatches(overhead, per_row, most, rows):
    assert schedule.microbatch(overhead, per_row, most=most) == rows


@given(st.integers(1, 10**6), st.integers(1, 10**4))
@settings(max_examples=100, deadline=None)
def test_a_microbatch_is_the_smallest_under_a_tenth(overhead, per_row):
    rows = schedule.microbatch(overhead, per_row)
    assert 10 * overhead < overhead + rows * per_row
    fewer = rows - 1
    assert not fewer or 10 * overhead >= overhead + fewer * per_row


@pytest.mark.parametrize(
    ("fewer", "more", "line"),
    [
        ((1, 5.0), (3, 7.0), (4.0, 1.0)),
        ((2, 2.0), (4, 4.0), (0.0, 1.0)),
        # Timings that scatter: neither part is ever negative.
        ((2, 3.0), (4, 2.0), (3.0, 0.0)),
        ((2, 1.0), (4, 5.0), (0.0, 2.0)),
    ],
)
def test_the_fixed_part_of_a_forward(fewer, more, line):
    assert schedule.fixed_and_per_row(fewer, more) == line


def test_weights_that_are_read_once_make_larger_microbatches():
    # 16 rows take little longer than one: their weights are read once.
    fixed, per_row = schedule.fixed_and_per_row((1, 0.100), (16, 0.115))
    assert schedule.microbatch(0.001, 0.1) == 1
    assert schedule.microbatch(0.001 + fixed, per_row) in (900, 901)


def test_two_timings_of_as_many_rows():
    with pytest.raises(ValueError, match="4 and 4 rows"):
        schedule.fixed_and_per_row((4, 1.0), (4, 2.0))


def test_rows_that_cost_nothing_need_a_limit():
    with pytest.raises(ValueError, match="pass most="):
        schedule.microbatch(1.0, 0.0)
