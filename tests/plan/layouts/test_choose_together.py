"""What several models on the same rows take beside each other."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.plan.layouts.alternative import Alternative
from dask_infer.plan.layouts.choose import alternatives, choose
from dask_infer.plan.layouts.choose_together import (
    Choice,
    choose_together,
    seconds_together,
)
from dask_infer.plan.layouts.job_facts import START, TASK, room
from dask_infer.spec import Layout

from .jobs import GB, crew, layers, small


def sized(gigabytes, workers, **options):
    """A model of eight equal layers; ten seconds of rows for each gigabyte."""
    nbytes = gigabytes * GB
    options = {"row_seconds": gigabytes * 1e-3, "load_rate": 1e11, **options}
    return replace(
        small(workers, **options), nbytes=nbytes, blocks=layers(8, nbytes, 16e-3)
    )


def names(choices):
    return [choice.chosen and choice.chosen.name for choice in choices]


def test_one_model_alone_is_chosen_for_as_ever():
    facts = sized(1, crew(4, 4))
    (choice,) = choose_together([facts])
    assert choice.chosen == choose(alternatives(facts))


def test_replicas_in_a_process_need_room_beside_each_other():
    workers = crew(4, 4)
    assert names(choose_together([sized(3, workers)])) == ["data"]
    assert names(choose_together([sized(2, workers), sized(1, workers)])) == 2 * [
        "data"
    ]
    small_one, large_one = choose_together([sized(1, workers), sized(3, workers)])
    assert small_one.chosen.kind == "data"
    assert large_one.chosen.kind != "data"
    (refused,) = [a.refused for a in large_one.found if a.kind == "data"]
    assert refused == "needs 2.8 GiB on every worker; w0 has 2.4 GiB"


def test_models_with_workers_of_their_own_divide_them():
    # Each alone would be in four stages, on all workers that there are.
    workers = crew(4, 4)
    pinned = {"pinned": True, "resources": (("A", 1.0),), "load_rate": 1e8}
    alone = sized(3, workers, rows=100, partitions=1, **pinned)
    assert names(choose_together([alone])) == ["stages=4"]
    both = choose_together([alone, alone])
    assert names(both) == ["stages=2", "stages=2"]
    assert sum(choice.chosen.workers for choice in both) <= 4


def test_what_holds_a_model_with_resources_is_free_for_none_without():
    workers = crew(4, 2)  # three of the gigabytes are two stages at least
    with_resources = sized(3, workers, pinned=True, resources=(("A", 1.0),))
    whole = layers(1, 3 * GB)
    divided = replace(sized(3, workers), blocks=whole, uncut="its code has loops")
    (alone,) = choose_together([divided])
    assert (alone.chosen.name, alone.chosen.workers) == ("shards=2", 4)
    first, second = choose_together([with_resources, divided])
    assert (first.chosen.name, first.chosen.workers_each) == ("stages=2", 2)
    assert (second.chosen.name, second.chosen.workers) == ("shards=2", 2)


def test_replicas_that_are_left_go_to_the_slowest():
    pinned = {"pinned": True, "resources": (("A", 1.0),)}
    jobs = [
        sized(1, crew(8, 1.2), row_seconds=seconds, **pinned)
        for seconds in (30e-3, 10e-3, 1e-3)
    ]
    choices = choose_together(jobs)
    assert [choice.chosen.replicas for choice in choices] == [5, 2, 1]
    slowest = max(choice.chosen.run for choice in choices)
    for shares in product(range(1, 7), repeat=3):
        if sum(shares) == 8:
            alone = [c.chosen.run * c.chosen.replicas for c in choices]
            runs = [run / n for run, n in zip(alone, shares, strict=True)]
            assert slowest <= max(runs) * 1.001


@pytest.mark.parametrize(
    ("resources", "refusal"),
    [
        ((("GPU", 1.0),), "no worker with resources={'GPU': 1.0} is left for it"),
        ((), "the other models of the job take all workers that could hold it"),
    ],
)
def test_who_finds_no_worker_of_its_own_is_refused(resources, refusal):
    workers = (*crew(1, 20, speed=100.0), *crew(3, 2, a_host=1, holds=0))
    own = {"resources": resources, "pinned": True}
    first, second = choose_together(
        [sized(4, workers, **own), sized(5, workers, **own)]
    )
    assert second.chosen.name == "replicas"
    assert first.chosen is None
    refused = {a.name: a.refused for a in first.found}
    assert refused["replicas"] == refused["stages=auto"] == refusal


def test_a_worker_with_two_of_a_resource_holds_two_models():
    workers = (*crew(1, 20, speed=100.0, holds=2), *crew(3, 2, holds=0))
    gpu = {"resources": (("GPU", 1.0),), "pinned": True}
    both = choose_together([sized(4, workers, **gpu), sized(5, workers, **gpu)])
    assert names(both) == ["replicas", "replicas"]


def of(kind, load, run):
    chosen = Alternative(kind, Layout(), load=load, run=run)
    return Choice([chosen], chosen)


def test_a_resource_may_be_counted_in_bytes():
    workers = crew(2, 4, holds=10**12)
    options = {"resources": (("MEMORY", 1.0),), "pinned": True}
    choices = choose_together([sized(1, workers, **options)] * 2)
    assert [choice.chosen.replicas for choice in choices] == [2, 2]


def test_models_of_a_process_take_turns_and_others_run_beside_them():
    local = [of("data", 1.0, START + 2.0), of("sweep", 0.5, START + 3.0)]
    assert seconds_together(local, 10) == pytest.approx(START + 6.5)
    assert seconds_together([*local, of("stages", 4.0, 1.0)], 10) == pytest.approx(
        START + 6.5
    )
    assert seconds_together([*local, of("stages", 4.0, 9.0)], 10) == 13.0


def test_the_scheduler_counts_once_for_all_models():
    floor = START + 1000 * TASK
    local = [of("data", 0.0, floor)] * 3
    assert seconds_together(local, 1000) == pytest.approx(floor)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.integers(1, 6))
def test_what_is_chosen_fits_beside_the_others(sizes, number):
    workers = crew(number, 4)
    jobs = [sized(size, workers, rows=500, partitions=5) for size in sizes]
    chosen = [choice.chosen for choice in choose_together(jobs) if choice.chosen]
    whole = [each for each in chosen if each.kind == "data"]
    apart = [each for each in chosen if each.kind not in ("data", "sweep")]
    assert sum(each.memory for each in whole) <= room(workers[0])
    assert sum(each.workers for each in apart) <= number
    assert all(each.memory <= each.room for each in chosen)
