"""Stages between given cuts get the workers under which the slowest is fastest."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.errors import PlacementError
from dask_infer.plan.assign import assign, count_replicas
from dask_infer.plan.facts import WorkerFacts
from tests.plan.chains import LINK, chain, chains, crew, crews, every_layout


@given(chains(least=2, most=6), crews(), st.data())
@settings(max_examples=150, deadline=None)
def test_no_order_of_workers_is_better(blocks, workers, data):
    inner = st.sets(st.integers(1, len(blocks) - 1), max_size=len(workers) - 1)
    cuts = sorted(data.draw(inner))
    bounds = (0, *cuts, len(blocks))
    every = every_layout(blocks, workers, len(cuts) + 1)
    alike = [plan.slowest for plan in every if plan.bounds == bounds]
    if alike:
        plan = assign(blocks, workers, cuts, LINK)
        assert (plan.bounds, plan.slowest) == (bounds, min(alike))
    else:
        with pytest.raises(PlacementError, match=r"stage \d of \d"):
            assign(blocks, workers, cuts, LINK)


def test_the_largest_stage_sits_on_the_largest_worker():
    blocks = chain([1] * 4, nbytes=[1, 1, 1, 5])
    assert assign(blocks, crew(4, 9, None), [1, 3]).workers == ("w0", "w1", "w2")


def test_what_is_left_is_too_small():
    blocks = chain([1] * 2, nbytes=[8, 7])
    says = r'stage 1 of 2, "b1", needs 7 B; .* w0, has 9 B .* left for it, w1, 6 B'
    with pytest.raises(PlacementError, match=says):
        assign(blocks, crew(9, 6), [1])


@pytest.mark.parametrize("cuts", [[0], [2, 2], [3, 1], [4]])
def test_cuts_rise_within_the_chain(cuts):
    with pytest.raises(ValueError, match=r"must rise, from 1 to at most 3"):
        assign(chain([1] * 4), crew(None, None, None), cuts)


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


def test_slow_workers_hold_fast_stages():
    workers = [WorkerFacts(f"w{i}", speed=speed) for i, speed in enumerate([1, 4])]
    plan = assign(chain([8, 2]), workers, [1])
    assert (plan.workers, plan.slowest) == (("w1", "w0"), 2)
