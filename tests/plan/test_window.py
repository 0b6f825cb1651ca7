"""How many microbatches may be in flight."""

from __future__ import annotations

import pytest

from dask_infer.plan.window import feeder_share, window_size


def test_the_default_window_is_twice_the_stages():
    assert [window_size("auto", stages) for stages in (1, 2, 4)] == [2, 4, 8]
    assert window_size(3, stages=4) == 3


@pytest.mark.parametrize(
    ("instances", "feeders", "share"),
    [(1, 1, 2), (4, 1, 8), (4, 2, 4), (4, 3, 4), (1, 9, 2), (0, 0, 2)],
)
def test_all_feeders_together_fill_the_windows(instances, feeders, share):
    assert feeder_share(2, instances, feeders) == share
