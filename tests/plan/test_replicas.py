"""How many replicas fit, and whose the next one is."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.plan.replicas import count_replicas, next_replica
from tests.plan.chains import chain, crew


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


@pytest.mark.parametrize(
    ("nbytes", "rooms", "replicas"),
    [
        ([4, 4], [4], 0),
        ([4, 4], [4, 4], 1),
        ([4, 4], [4] * 5, 2),
        ([8, 2], [8, 8, 2, 2], 2),
        ([8, 2], [8, 2, 2, 2], 1),
        ([8, 2], [8, 8, 8, 8], 2),
        ([8, 2], [2] * 9, 0),
    ],
)
def test_table_of_replicas(nbytes, rooms, replicas):
    blocks, workers = chain([1, 1], nbytes), crew(*rooms)
    assert count_replicas(blocks, workers, (0, 1, 2)) == replicas


@pytest.mark.parametrize(
    ("rooms", "replicas"),
    [([8, 8, 2], 0), ([8, 8, 2, 2], 1), ([8, 2, 2, 2], 0), ([8] * 4 + [2] * 4, 2)],
)
def test_table_of_replicas_in_two_shards(rooms, replicas):
    blocks, workers = chain([1, 1], [8, 2]), crew(*rooms)
    assert count_replicas(blocks, workers, (0, 1, 2), shards=2) == replicas
