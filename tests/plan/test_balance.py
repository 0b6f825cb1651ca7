"""Balanced stages are the best of all there are; what fits nowhere is named."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from dask_infer.errors import PlacementError
from dask_infer.plan import worker_classes as classes
from dask_infer.plan.balance import balance
from dask_infer.plan.facts import WorkerFacts
from tests.plan.chains import chain, chains, crew, crews, every_layout


def slowest_and_cut_bytes(plan):
    return plan.slowest, sum(stage.cut_bytes for stage in plan.stages)


@given(chains(), crews(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_no_layout_is_better(blocks, workers, stages):
    # FACTS 25: brute force over every cut and every order of workers.
    stages = min(stages, len(blocks), len(workers))
    layouts = every_layout(blocks, workers, stages)
    best = min(map(slowest_and_cut_bytes, layouts), default=None)
    event("fits" if best else "fits nowhere")
    if best is None:
        with pytest.raises(PlacementError, match=r"needs|no cut"):
            balance(blocks, workers, stages)
        return
    plan = balance(blocks, workers, stages)
    assert slowest_and_cut_bytes(plan) == best
    assert plan.bounds[0] == 0 and plan.bounds[-1] == len(blocks)
    assert len(set(plan.workers)) == stages
    rooms = {worker.address: worker.room for worker in workers}
    assert all(stage.memory <= rooms[stage.worker] for stage in plan.stages)


@given(chains(most=7), crews(most=6), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_workers_left_out_would_not_help(blocks, workers, stages):
    stages = min(stages, len(blocks), len(workers))
    layouts = every_layout(blocks, workers, stages)
    best = min((plan.slowest for plan in layouts), default=None)
    if best is not None:
        assert balance(blocks, workers, stages).slowest == best


@pytest.mark.parametrize(
    ("seconds", "cuts", "stages", "bounds"),
    [
        ([1, 1, 1, 1], None, 1, (0, 4)),
        ([1, 1, 1, 1], None, 2, (0, 2, 4)),
        ([1, 1, 1, 1], None, 4, (0, 1, 2, 3, 4)),
        ([4, 1, 1, 1, 1], None, 2, (0, 1, 5)),
        # The even cut would send more than it saves: 56 bytes take 7 s.
        ([2, 2, 2, 2], [0, 8, 56, 16], 2, (0, 1, 4)),
        # Two cuts are as fast: the one with fewer bytes.
        ([2, 1, 2], [0, 8, 4], 2, (0, 2, 3)),
        # One block decides; the others are still spread evenly.
        ([9, 1, 1, 1, 1], None, 3, (0, 1, 3, 5)),
    ],
)
def test_table_of_cuts(seconds, cuts, stages, bounds):
    plan = balance(chain(seconds, cuts=cuts), crew(*[None] * stages), stages)
    assert plan.bounds == bounds


def test_memory_moves_the_cut():
    blocks = chain([1, 1, 1, 1], nbytes=[10, 10, 10, 50])
    plan = balance(blocks, crew(60, 60), 2)
    assert plan.bounds == (0, 2, 4)
    plan = balance(blocks, crew(50, 30), 2)
    assert (plan.bounds, plan.workers) == ((0, 3, 4), ("w1", "w0"))


def test_activations_count_once_a_stage():
    blocks = chain([1, 1, 1], nbytes=[10, 10, 10], activations=[5, 5, 5])
    assert balance(blocks, crew(25, 25), 2).stages[0].memory in (15, 25)
    with pytest.raises(PlacementError, match=r"stage \d of 2"):
        balance(blocks, crew(24, 24), 2)


def test_the_faster_worker_holds_more():
    slow, fast = WorkerFacts("slow"), WorkerFacts("fast", speed=3.0)
    plan = balance(chain([1] * 8), [slow, fast], 2)
    blocks = {stage.worker: stage.stop - stage.start for stage in plan.stages}
    assert blocks == {"slow": 2, "fast": 6}
    assert plan.slowest == 2


def test_neighbours_share_a_host():
    hosts = ["a", "b", "a", "b"]
    workers = [WorkerFacts(f"w{i}", host=host) for i, host in enumerate(hosts)]
    plan = balance(chain([1] * 4), workers, 2)
    assert plan.workers == ("w0", "w2")


def test_long_chains_and_many_workers():
    seconds = [1 + i % 7 for i in range(500)]
    plan = balance(chain(seconds, nbytes=[8] * 500), crew(*[1000] * 100), 8)
    assert len(plan.stages) == 8
    assert plan.slowest <= sum(seconds) / 8 + 7


def test_a_search_looks_at_few_of_many_workers():
    # 100 workers that all differ: those with most memory are as good as any.
    workers = crew(*range(1000, 1100))
    assert len(classes.worker_classes(workers, 4, 50, 5000)) == 4


def test_many_workers_none_better_than_another():
    workers = [WorkerFacts(f"w{i}", 100 + i, 200 - i) for i in range(30)]
    blocks = chain([1] * 20, nbytes=[5] * 20)
    assert len(classes.worker_classes(workers, 2, 20, 500)) == 30
    plan = balance(blocks, workers, 2)
    assert plan.bounds == (0, 10, 20)
    assert set(plan.workers) == {"w0", "w1"}


def test_merged_classes_still_fit(monkeypatch):
    workers = [WorkerFacts(f"w{i}", 20 + 7 * i, 1 + i / 8) for i in range(6)]
    blocks = chain([1 + i % 3 for i in range(30)], nbytes=[4] * 30)
    exact = balance(blocks, workers, 5)
    monkeypatch.setattr(classes, "STEPS", 2000)
    merged = balance(blocks, workers, 5)
    assert len(classes.worker_classes(workers, 5, 30, 120)) < 6
    rooms = {worker.address: worker.room for worker in workers}
    assert all(stage.memory <= rooms[stage.worker] for stage in merged.stages)
    assert exact.slowest <= merged.slowest <= 2 * exact.slowest


GIB = 2**30


@pytest.mark.parametrize(
    ("nbytes", "rooms", "stages", "parts"),
    [
        (
            [1, 12, 1],
            [8, 4],
            2,
            ['block "b1"', "12.0 GiB", "w0, has 8.0 GiB", "bfloat"],
        ),
        ([5, 5, 5], [8, 8], 2, ['stage 0 of 2, "b0" to "b1"', "10.0 GiB", "8.0 GiB"]),
        ([3, 3, 3, 3], [8, 4], 2, ["into 2 stages", "12.0 GiB", "8.0 GiB, 4.0 GiB"]),
        ([1, 1, 1], [8, 8], 3, ["3 stages need 3 workers", "and 2 can"]),
        ([1, 1], [8, 8, 8], 3, ["cannot be cut into 3 stages", "2 blocks"]),
    ],
)
def test_refusals_name_what_is_too_large(nbytes, rooms, stages, parts):
    blocks = chain([1] * len(nbytes), nbytes=[n * GIB for n in nbytes])
    with pytest.raises(PlacementError) as refusal:
        balance(blocks, crew(*(room * GIB for room in rooms)), stages)
    assert [part for part in parts if part not in str(refusal.value)] == []
