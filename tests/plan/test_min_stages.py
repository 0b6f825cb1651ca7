"""The fewest stages are the first number for which any layout fits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from dask_infer.errors import PlacementError
from dask_infer.plan.min_stages import min_stages
from tests.plan.chains import chain, chains, crew, crews, every_layout


def by_brute_force(blocks, workers):
    for stages in range(1, min(len(blocks), len(workers)) + 1):
        if next(every_layout(blocks, workers, stages), None):
            return stages
    return None


@given(chains(), crews())
@settings(max_examples=200, deadline=None)
def test_no_fewer_would_do(blocks, workers):
    expected = by_brute_force(blocks, workers)
    if expected is None:
        with pytest.raises(PlacementError, match="needs"):
            min_stages(blocks, workers)
    else:
        assert min_stages(blocks, workers) == expected


@pytest.mark.parametrize(
    ("nbytes", "rooms", "stages"),
    [
        ([1, 1, 1], [None], 1),
        ([4, 4, 4, 4], [16, 8], 1),
        ([4, 4, 4, 4], [8, 8], 2),
        ([4, 4, 4, 4], [9, 4, 4], 3),
        # The small worker must come first: an order that only a search finds.
        ([4, 8, 4], [4, 12], 2),
        ([4] * 500, [80] * 40, 25),
    ],
)
def test_table_of_fewest(nbytes, rooms, stages):
    assert min_stages(chain([1] * len(nbytes), nbytes), crew(*rooms)) == stages


def test_workers_that_are_too_small_together():
    with pytest.raises(PlacementError, match=r'"b0" to "b3", needs 16 B .* 2 workers'):
        min_stages(chain([1] * 4, nbytes=[4] * 4), crew(8, 4))


def test_no_worker_at_all():
    with pytest.raises(PlacementError, match="no worker is free"):
        min_stages(chain([1]), [])
