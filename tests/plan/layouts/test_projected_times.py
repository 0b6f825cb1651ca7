"""Projected times against simulations of the same, event by event."""

from __future__ import annotations

import heapq
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dask_infer.plan.layouts.job_facts import PARTITION, START, TASK
from dask_infer.plan.layouts.local_layouts import data, last_end, makespan, sweep
from dask_infer.plan.layouts.remote_layouts import replicas, stages
from dask_infer.plan.microbatch_size import OVERHEAD

from .jobs import GB, crew, layers, small


def simulated_end(durations, tasks):
    """Each thread that is free takes the next task, of several the slowest."""
    threads = [(0.0, -each) for each, n in durations.items() for _ in range(n)]
    heapq.heapify(threads)
    end = 0.0
    for _ in range(tasks):
        free, each = heapq.heappop(threads)
        end = max(end, free - each)
        heapq.heappush(threads, (free - each, each))
    return end


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.integers(1, 9), st.integers(1, 3), min_size=1, max_size=3),
    st.integers(0, 40),
)
def test_the_last_partition_ends_when_a_simulation_says(durations, tasks):
    durations = Counter({float(each): n for each, n in durations.items()})
    simulated = simulated_end(durations, tasks)
    if tasks >= sum(durations.values()):
        assert last_end(durations, tasks) == pytest.approx(simulated)
    else:  # which threads get the few is not known: the slowest may
        assert last_end(durations, tasks) >= simulated


def test_threads_beyond_the_cores_of_a_host_slow_each_other_down():
    seconds = makespan(small(crew(4, 4), cores=4))
    assert seconds == pytest.approx(25 * (PARTITION + 0.1))
    seconds = makespan(small(crew(4, 4), cores=2))
    assert seconds == pytest.approx(50 * (PARTITION + 0.1))
    # Two partitions leave two of the threads idle.
    assert makespan(small(crew(4, 4), cores=2, partitions=2)) == pytest.approx(
        5 + PARTITION
    )


def test_a_sweep_costs_no_more_than_its_weights_or_its_rows():
    facts = small(load_rate=GB / 10)  # ten seconds a pass
    assert sweep(facts).run == pytest.approx(START + 25 * 10)
    facts = small(load_rate=GB / 10, partitions=4)  # one pass, of 2.5 s of rows
    assert sweep(facts).run == pytest.approx(START + 10)
    facts = small(load_rate=1e12, partitions=4)
    assert sweep(facts).run == pytest.approx(data(facts).run, rel=0.05)


def test_the_last_pass_of_a_sweep_is_not_rounded_up():
    workers = crew(1, 4, threads=4)
    # Five partitions of a second on one core: four in the first pass, one in the last.
    facts = small(workers, rows=5000, partitions=5, load_rate=1e12, cores=1)
    assert sweep(facts).run == pytest.approx(START + 5 * (PARTITION + 1))


def recurrence(microbatches, times, hop):
    """When the last microbatch leaves the last of the stages."""
    done = [0.0] * len(times)
    for _ in range(microbatches):
        before = 0.0
        for stage, seconds in enumerate(times):
            arrives = before + (hop if stage else 0.0)
            before = done[stage] = max(arrives, done[stage]) + seconds
    return done[-1]


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("partitions", [1, 10, 200])
def test_stages_take_as_long_as_a_recurrence_says(number, partitions):
    rows = 100 * partitions
    facts = small(
        crew(number, 0.8), rows=rows, partitions=partitions, row_seconds=0.01,
        blocks=layers(12, GB, 0.16),
    )  # fmt: skip
    found = next(a for a in stages(facts) if a.layout.stages == number)
    # 100 rows of 10 ms are cut into microbatches of a twentieth of overhead.
    assert found.replicas == 1
    times = [[0.01 / number * size + OVERHEAD] * number for size in (5, 7, 9, 12)]
    limits = [
        recurrence(rows // size, stage, 0.0)
        for size, stage in zip((5, 7, 9, 12), times, strict=True)
    ]
    run = found.run - START
    assert min(limits) * 0.85 <= run <= max(limits) * 1.15


def test_a_remote_replica_is_as_fast_as_who_feeds_it():
    workers = (*crew(1, 4, speed=100.0), *crew(3, 4, holds=0))
    slow = small(workers, resources=(("GPU", 1.0),), prepare_seconds=1e-2)
    assert replicas(slow).run == pytest.approx(100 * 1.0 / 4, rel=0.1)
    fast = small(workers, resources=(("GPU", 1.0),))
    assert replicas(fast).run < 1.0


def test_threads_that_wait_for_no_core_do_not_slow_each_other_down():
    seconds = makespan(small(crew(4, 4), cores=2, core_share=0.1))
    assert seconds == pytest.approx(25 * (PARTITION + 0.1))


def test_each_partition_costs_the_scheduler_its_time():
    facts = small(row_seconds=0.0, partitions=10_000)
    assert data(facts).run == START + 10_000 * TASK
