"""Layer groups of a sweep: as few as fit, and those that stay."""

from __future__ import annotations

from itertools import pairwise

import pytest

from dask_infer.errors import PlacementError
from dask_infer.plan.facts import BlockFacts
from dask_infer.plan.layouts.sweep_groups import (
    check_blocks,
    leading_groups,
    plan_groups,
)


def chain(*sizes: int) -> list[BlockFacts]:
    return [BlockFacts(f"block.{n}", size, 0.0) for n, size in enumerate(sizes)]


def sizes(blocks: list[BlockFacts], bounds: tuple[int, ...]) -> list[int]:
    return [sum(b.nbytes for b in blocks[i:j]) for i, j in pairwise(bounds)]


@pytest.mark.parametrize(
    ("blocks", "room", "expected"),
    [
        ([10] * 6, 60, [60]),  # all of it fits
        ([10] * 6, 59, [10] * 6),  # three groups of 19
        ([10] * 12, 60, [20] * 6),
        ([10] * 12, 90, [30] * 4),
        ([1] * 7, 6, [2, 2, 2, 1]),
        ([50, 10, 10, 10], 60, [50, 20, 10]),  # one block is larger than a third
        ([0, 0, 30, 0], 30, [30]),
    ],
)
def test_as_few_groups_as_fit_three_at_a_time(blocks, room, expected):
    made = chain(*blocks)
    assert sorted(sizes(made, plan_groups(made, room))) == sorted(expected)


@pytest.mark.parametrize("groups", [1, 2, 3, 5, 7])
def test_a_number_is_kept_and_cut_evenly(groups):
    made = chain(*[10] * 7)
    found = sizes(made, plan_groups(made, 1e9, groups))
    assert len(found) == groups
    assert max(found) == 10 * -(-7 // groups)


def test_named_cuts_are_those_of_the_chain():
    assert plan_groups(chain(90, 1, 1), 10, ("a", "b")) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("groups", "room", "kept"),
    [
        ([10] * 6, 60, 6),
        ([10] * 6, 59, 3),
        ([10] * 6, 30, 1),
        ([10] * 6, 20, 0),
        ([10] * 6, 5, 0),
        ([10, 10, 40, 10], 60, 1),
        ([10, 10, 40, 10], 50, 0),
    ],
)
def test_the_first_groups_stay_beside_two_that_pass(groups, room, kept):
    assert leading_groups(groups, room) == kept


def test_a_block_that_is_too_large_is_named():
    check_blocks("m", chain(10, 20), 20, "cpu of worker w")
    with pytest.raises(PlacementError, match=r'block "block.1" of model "m" needs 20'):
        check_blocks("m", chain(10, 20), 19, "cpu of worker w")
