"""Stages in shards: bytes of each, how many, and which workers share a stage."""

import pytest

from dask_infer.errors import PlacementError
from dask_infer.plan.facts import BlockFacts, WorkerFacts
from dask_infer.plan.layouts.shards import (
    EXCHANGE,
    in_shards,
    plan_layout,
    teams,
)
from dask_infer.plan.plan_pipeline import plan_pipeline
from dask_infer.spec import Layout

GIB = 2**30


def workers(*memory: int, hosts: str = "") -> list[WorkerFacts]:
    names = hosts or "h" * len(memory)
    return [
        WorkerFacts(f"w{n}", gib * GIB, host=names[n]) for n, gib in enumerate(memory)
    ]


def plan(blocks, workers, stages, shards):
    return plan_layout(Layout(stages=stages, shards=shards), blocks, workers)


def test_shards_divide_what_is_divisible_and_exchange():
    block = BlockFacts("b", 100, 1.0, divisible=90, exchanges=3, parameters=50)
    (each,) = in_shards([block], 4)
    assert each.nbytes == 10 + 23
    assert each.seconds == pytest.approx(0.33 + 3 * EXCHANGE)
    assert each.parameters == 17


@pytest.mark.parametrize(("memory", "shards"), [(16, 2), (12, 3), (8, 4)])
def test_auto_is_the_fewest_that_fit_and_at_least_two(memory, shards):
    block = BlockFacts("embedding", 30 * GIB, 1.0, divisible=30 * GIB)
    small = BlockFacts("small", 2**20, 1.0, divisible=2**20)
    assert plan([block], workers(*[memory] * 4), 1, "auto").shards == shards
    assert plan([small], workers(*[memory] * 4), 1, "auto").shards == 2


def test_each_stage_has_workers_of_its_own():
    blocks = [BlockFacts(f"b{n}", 4 * GIB, 1.0, divisible=4 * GIB) for n in range(4)]
    two = plan(blocks, workers(*[8] * 5), 2, 2)
    assert len(two.stages) == 2
    assert len(set(two.workers)) == 4
    assert "2 shards a stage: as asked; each holds 4.0 GiB of 16.0 GiB." in (
        two.table()
    )


def test_one_shard_is_a_pipeline():
    blocks = [BlockFacts(f"b{n}", GIB, 1.0, divisible=GIB) for n in range(4)]
    piped = plan(blocks, workers(3, 3, 3), "auto", 1)
    assert piped == plan_pipeline(blocks, workers(3, 3, 3))
    assert piped.shards == 1
    assert in_shards(blocks, 1) == blocks


def test_named_cuts_make_a_stage_of_each_block():
    blocks = [BlockFacts(f"b{n}", GIB, 1.0, divisible=GIB) for n in range(3)]
    named = plan(blocks, workers(3, 3, 3), ["1", "2"], 1)
    assert named.bounds == (0, 1, 2, 3)


def test_a_stage_is_on_one_host_where_there_is_one():
    block = BlockFacts("b", GIB, 1.0, divisible=GIB)
    five = workers(8, 8, 8, 8, 8, hosts="abcab")
    assert plan([block], five, 1, 2).workers in (("w0", "w3"), ("w1", "w4"))
    three = plan([block], five, 1, 3)
    assert len(set(three.workers)) == 3
    assert [len(t.members) for t in teams(five, 2, near=False)] == [2, 2]


def test_refusals_name_what_is_missing():
    block = BlockFacts("b", 40 * GIB, 1.0, divisible=30 * GIB)
    with pytest.raises(PlacementError, match="3 shards need 3 workers"):
        plan([block], workers(64, 64), 1, 3)
    with pytest.raises(PlacementError, match=r'block "b" needs .* w0 \+ w1 \+ w2, has'):
        plan([block], workers(8, 8, 8), "auto", "auto")
    with pytest.raises(PlacementError, match=r"2 shards need .* start more workers"):
        plan([block], [], 1, "auto")
