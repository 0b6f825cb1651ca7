"""Workers shared out among models so that the slowest of them is fastest."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.plan.layouts.share_replicas import next_replica


def shared_out(seconds, workers):
    replicas = [1] * len(seconds)
    for _ in range(workers - len(seconds)):
        replicas[next_replica(seconds, replicas)] += 1
    return replicas


def slowest(seconds, replicas):
    return max(s / n for s, n in zip(seconds, replicas, strict=True))


@given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=4), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_no_other_sharing_makes_the_slowest_faster(seconds, spare):
    workers = len(seconds) + spare
    every = product(range(1, spare + 2), repeat=len(seconds))
    best = min(slowest(seconds, each) for each in every if sum(each) == workers)
    assert slowest(seconds, shared_out(seconds, workers)) == best


def test_three_models_on_eight_workers():
    assert shared_out([30, 10, 0.1], 8) == [5, 2, 1]
