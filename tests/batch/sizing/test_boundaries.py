"""Plans hold every row exactly once, within their bounds, and cost little padding."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.batch.sizing.boundaries import plan_tokens


@pytest.mark.parametrize(
    ("lengths", "budget", "rows", "plan"),
    [
        ([], 10, None, []),
        ([3], 10, None, [[0]]),
        ([3, 3, 3], 6, None, [[0, 1], [2]]),
        ([1, 5, 3], 10, None, [[1, 2], [0]]),
        ([1, 5, 5, 3], 10, None, [[1, 2], [3, 0]]),
        ([1, 50, 3], 10, None, [[1], [2, 0]]),
        ([2, 2, 2, 2], None, 3, [[0, 1, 2], [3]]),
        ([1, 9, 4], None, None, [[1, 2, 0]]),
        ([0, 0, 0], 2, None, [[0, 1], [2]]),
    ],
)
def test_batches_under_a_budget_longest_first(lengths, budget, rows, plan):
    batches = plan_tokens(lengths, budget=budget, rows=rows)
    assert [batch.tolist() for batch in batches] == plan


def price(lengths, batches, forward_cost):
    """Padded tokens and forwards of a plan."""
    padded = sum(max(1, lengths[batch].max()) * len(batch) for batch in batches)
    return padded + forward_cost * len(batches)


def cheapest(lengths, budget, rows, forward_cost):
    """Price of the cheapest of all plans over the sorted lengths."""
    falling = np.maximum(np.sort(lengths)[::-1], 1)
    best = np.full(len(falling) + 1, np.inf)
    best[0] = 0
    for start, longest in enumerate(falling):
        most = min(rows or len(falling), (budget or 10**9) // longest)
        ends = np.arange(start + 1, 1 + min(len(falling), start + max(1, most)))
        paid = best[start] + longest * (ends - start) + forward_cost
        best[ends] = np.minimum(best[ends], paid)
    return best[-1]


@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=80),
    st.none() | st.integers(1, 400),
    st.none() | st.integers(1, 50),
    st.integers(0, 200),
)
@settings(max_examples=300, deadline=None)
def test_no_plan_within_the_bounds_is_cheaper(lengths, budget, rows, cost):  # RY-5
    lengths = np.array(lengths)
    batches = plan_tokens(lengths, budget=budget, rows=rows, forward_cost=cost)
    seen = np.concatenate(batches)
    assert sorted(seen) == list(range(len(lengths)))
    assert lengths[seen].tolist() == sorted(lengths, reverse=True)
    for batch in batches:
        padded = max(1, lengths[batch[0]]) * len(batch)
        assert len(batch) == 1 or budget is None or padded <= budget
        assert rows is None or len(batch) <= rows
    least = cheapest(lengths, budget, rows, cost)
    assert price(lengths, batches, cost) == pytest.approx(least)


def test_not_even_batches_of_rows_that_are_not_neighbours_are_cheaper():
    lengths, budget, cost = np.array([6, 5, 5, 3, 2, 1]), 12, 3

    def divisions(rows):
        if not rows:
            yield []
            return
        first, *rest = rows
        for k in range(len(rest) + 1):
            for others in itertools.combinations(rest, k):
                batch = [first, *others]
                if k == 0 or lengths[batch].max() * len(batch) <= budget:
                    left = [row for row in rest if row not in others]
                    yield from ([batch, *more] for more in divisions(left))

    least = min(price(lengths, plan, cost) for plan in divisions([*range(6)]))
    plan = plan_tokens(lengths, budget=budget, forward_cost=cost)
    assert price(lengths, plan, cost) == least


def test_a_cut_must_pay_for_another_forward():
    lengths = [100, 10, 10]
    plans = {
        cost: plan_tokens(lengths, budget=4096, forward_cost=cost)
        for cost in (179, 181)
    }
    assert [len(plans[cost]) for cost in (179, 181)] == [2, 1]


def test_equal_lengths_keep_their_order():
    batches = plan_tokens([5, 5, 9, 5], budget=10, forward_cost=0)
    assert np.concatenate(batches).tolist() == [2, 0, 1, 3]
