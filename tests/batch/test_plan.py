"""Plans hold every row exactly once, within their bounds, and cost little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.batch.plan import plan_rows, plan_tokens


@pytest.mark.parametrize(
    ("n", "size", "bounds"),
    [
        (0, 4, []),
        (1, 4, [(0, 1)]),
        (4, 4, [(0, 4)]),
        (5, 4, [(0, 4), (4, 5)]),
        (9, 3, [(0, 3), (3, 6), (6, 9)]),
        (2, 1, [(0, 1), (1, 2)]),
    ],
)
def test_rows_in_consecutive_batches(n, size, bounds):
    assert [(rows.start, rows.stop) for rows in plan_rows(n, size)] == bounds


def test_rows_ask_a_changing_policy_once_per_batch():
    sizes = iter([2, 4, 8])
    plan = plan_rows(11, lambda: next(sizes))
    assert [(rows.start, rows.stop) for rows in plan] == [(0, 2), (2, 6), (6, 11)]


def test_rows_from_a_start():
    assert list(plan_rows(5, 4, start=3)) == [slice(3, 5)]


@pytest.mark.parametrize(
    ("lengths", "budget", "rows", "plan"),
    [
        ([], 10, None, []),
        ([3], 10, None, [[0]]),
        ([3, 3, 3], 6, None, [[0, 1], [2]]),
        ([1, 5, 3], 10, None, [[1, 2], [0]]),
        ([1, 50, 3], 10, None, [[1], [2, 0]]),
        ([2, 2, 2, 2], None, 3, [[0, 1, 2], [3]]),
        ([1, 9, 4], None, None, [[1, 2, 0]]),
        ([0, 0, 0], 2, None, [[0, 1], [2]]),
    ],
)
def test_batches_under_a_budget_longest_first(lengths, budget, rows, plan):
    batches = plan_tokens(lengths, budget=budget, rows=rows)
    assert [batch.tolist() for batch in batches] == plan


@given(
    st.lists(st.integers(0, 600), max_size=80),
    st.none() | st.integers(1, 4000),
    st.none() | st.integers(1, 50),
    st.none() | st.floats(1.0, 3.0),
    st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_every_row_once_within_budget(lengths, budget, rows, ratio, cost):
    batches = plan_tokens(
        lengths, budget=budget, rows=rows, ratio=ratio, forward_cost_tokens=cost
    )
    seen = [row for batch in batches for row in batch.tolist()]
    assert sorted(seen) == list(range(len(lengths)))
    falling = [lengths[row] for row in seen]
    assert falling == sorted(lengths, reverse=True)
    for batch in batches:
        assert (
            len(batch) == 1
            or budget is None
            or lengths[batch[0]] * len(batch)
            <= max(budget, len(batch) if lengths[batch[0]] == 0 else 0)
        )
        assert rows is None or len(batch) <= rows


def test_a_cut_must_pay_for_another_forward():
    lengths = [100, 10, 10]
    plans = {
        cost: plan_tokens(lengths, budget=4096, forward_cost_tokens=cost)
        for cost in (179, 180)
    }
    assert [len(plans[cost]) for cost in (179, 180)] == [2, 1]


def test_no_ratio_fills_the_budget():
    assert len(plan_tokens([500, 1, 1], budget=4096, ratio=None)) == 1


def cheapest(lengths, budget, cost):
    """Least padded tokens and forwards of any plan over the sorted lengths."""
    falling = np.sort(lengths)[::-1]
    best = np.full(len(falling) + 1, np.inf)
    best[0] = 0
    for start, longest in enumerate(falling):
        ends = np.arange(start + 1, 1 + min(len(falling), start + budget // longest))
        price = best[start] + longest * (ends - start) + cost
        best[ends] = np.minimum(best[ends], price)
    return best[-1]


@pytest.mark.parametrize("budget", [2048, 8192, 32768])
@pytest.mark.parametrize("n", [40, 250, 2000])
def test_skewed_lengths_cost_little_more_than_the_cheapest_plan(n, budget):
    lengths = np.random.default_rng(n).lognormal(2.9, 0.9, n).astype(int)
    lengths = lengths.clip(3, 256)
    batches = plan_tokens(lengths, budget=budget)
    price = sum(lengths[batch].max() * len(batch) + 256 for batch in batches)
    assert price <= 1.05 * cheapest(lengths, budget, 256)
