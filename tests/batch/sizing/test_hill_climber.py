"""Sizes are a state machine: tables of what it saw and chose."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from dask_infer.batch.sizing.hill_climber import (
    OBSERVATIONS,
    RUN,
    WARM_UP,
    FixedSize,
    HillClimber,
)

LIMIT = 131_072


def settle(policy, seconds_of, forwards=300):
    """Let it see full forwards; return the sizes that it went through."""
    sizes = [policy.size]
    for _ in range(forwards):
        size = policy.next_size()
        policy.observe(size, seconds_of(size))
        if policy.size != sizes[-1]:
            sizes.append(policy.size)
    return sizes


def overhead(rows):
    return 1e-3 + rows * 1e-6


def quadratic(rows):
    return 1e-3 + rows * 1e-6 + (rows / 4096) ** 2 * 1e-2


def steep(rows):
    return 1e-5 + rows * 1e-6 + (rows / 1024) ** 2 * 1e-2


@pytest.mark.parametrize(
    ("seconds_of", "sizes"),
    [
        # 2048 rows take 3.0 ms, 16384 take 17.4: then a doubling brings under 3 %.
        (overhead, [2048, 4096, 8192, 16384]),
        (lambda rows: 1.0, [2048, 4096, 8192, 16384, 32768, 65536, LIMIT]),
        # No size is faster: neither the double nor the half.
        (lambda rows: rows * 1e-6, [2048, 1024, 2048]),
        # From 2048 rows on the caches are too small; 512 are slower than 1024.
        (quadratic, [2048, 1024, 512, 1024]),
        (steep, [2048, 1024, 512, 256, 128, 64, 32, 16, 32]),
        (lambda rows: float(rows**2), [2048 >> n for n in range(12)]),
    ],
)
def test_climbs_to_the_fastest_and_stays(seconds_of, sizes):
    policy = HillClimber(2048, LIMIT)
    assert settle(policy, seconds_of) == sizes
    assert policy.settled
    assert settle(policy, overhead) == [policy.size]
    assert {policy.next_size() for _ in range(4)} == {policy.size}


def test_two_sizes_take_turns_while_it_is_open():
    policy = HillClimber(16, LIMIT)
    tried = []
    for _ in range(WARM_UP + 6 * RUN):
        tried.append(policy.next_size())
        policy.observe(tried[-1], tried[-1] * 1e-6)
    runs = [16] * RUN, [32] * RUN
    assert tried[WARM_UP:] == [*runs[0], *runs[1]] * 3
    assert policy.size == 8  # neither was faster


def test_a_turn_is_no_ones_until_it_was_observed():
    # Partitions that end early, or ask in vain, do not shift the turns.
    policy = HillClimber(16, LIMIT)
    assert [policy.next_size() for _ in range(4)] == [16] * 4
    for _ in range(100):
        policy.observe(9, 1.0)
    assert policy.next_size() == 16


def pair(policy, small, large):
    """Let one run of each size of a pair take these seconds; the first do not count."""
    for seconds in (small, large):
        for each in (1.0, *seconds):
            policy.observe(policy.next_size(), each)


def warm(policy, seconds=1.0):
    for _ in range(WARM_UP):
        policy.observe(17, seconds)


def test_first_forwards_and_other_sizes_do_not_count():
    policy = HillClimber(2048, LIMIT)
    for _ in range(WARM_UP):
        policy.observe(2048, 1e-6)
    policy.observe(17, 1e-9)
    pair(policy, [3e-3, 3e-3], [5e-3, 5e-3])
    assert policy.size == 4096


def test_forwards_that_nearly_fill_a_size_count():
    policy = HillClimber(1000, LIMIT)
    warm(policy)
    for rows in [800] * RUN + [1700] * RUN:
        policy.observe(rows, 1.0)
    assert policy.size == 2000


def test_a_clear_winner_needs_one_run():
    policy = HillClimber(64, LIMIT)
    warm(policy)
    pair(policy, [1.0, 1.0], [1.0, 1.0])
    assert policy.size == 128


def test_slow_forwards_do_not_end_the_search():
    policy = HillClimber(2048, LIMIT)
    warm(policy)
    for _ in range(OBSERVATIONS // 2):
        pair(policy, [3e-3, 3e-3], [9.0, 5e-3])
    assert policy.size == 4096


def test_feeders_that_wait_for_each_other_do_not_look_faster():
    # Forwards of two threads alternate, so each takes its own time and its neighbour's.
    policy, before = HillClimber(64, LIMIT), 0.0
    for _ in range(200):
        if policy.settled:
            break
        size = policy.next_size()
        policy.observe(size, size * 1e-6 + before)
        before = size * 1e-6
    assert policy.settled and policy.size == 64


@pytest.mark.parametrize("slow", [1.0, 3.0])
def test_a_machine_that_slows_down_does_not_end_the_search(slow):
    # Whatever slows both of a pair leaves the winner as it is.
    policy, seen = HillClimber(16, LIMIT), 0

    def seconds_of(rows):
        nonlocal seen
        seen += 1
        return overhead(rows) * (1 if seen < 12 else slow)

    assert settle(policy, seconds_of)[-1] == 16384


def test_what_it_took_to_settle_is_counted():
    policy = HillClimber(64, 256)
    settle(policy, lambda rows: 1.0)
    assert policy.size == 256
    assert policy.spent == WARM_UP * 64 + RUN * (64 + 128 + 128 + 256)


@pytest.mark.parametrize("limit", [1, 99, 100, 199])
def test_nothing_is_tried_beyond_the_limit(limit):
    policy = HillClimber(min(100, limit), limit)
    assert policy.settled
    assert policy.next_size() == min(100, limit)


# DI-09
def test_out_of_memory_halves_and_caps_for_good():
    policy = HillClimber(2048, LIMIT)
    assert policy.on_out_of_memory(2048) == 1024
    assert policy.on_out_of_memory(1024) == 512
    assert policy.settled
    policy.resume({"size": 2048})
    assert settle(policy, overhead) == [512]


def test_out_of_memory_while_climbing_returns_to_what_fitted():  # DI-09
    policy = HillClimber(2048, LIMIT)
    while policy.size == 2048:
        policy.observe(policy.next_size(), 1e-3)
    assert policy.size == 4096
    assert policy.on_out_of_memory(8192) == 4096


@pytest.mark.parametrize("policy", [FixedSize(64), HillClimber(64, LIMIT)], ids=repr)
def test_out_of_memory_at_one_row_stays_at_one_row(policy):
    assert policy.on_out_of_memory(1) == 1
    assert policy.size == 1


# DI-09, SP-05
def test_fixed_size_is_a_bound_that_only_memory_lowers():
    policy = FixedSize(100)
    assert settle(policy, overhead) == [100]
    assert policy.on_out_of_memory(100) == 50
    assert policy.on_out_of_memory(100) == 50
    assert repr(policy) == "<FixedSize 50 rows, settled>"


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "auto", None])
def test_fixed_size_refuses_what_is_no_number_of_rows(size):
    with pytest.raises(ValueError, match="positive whole number"):
        FixedSize(size)


@pytest.mark.parametrize("seed", range(10))
def test_noise_neither_keeps_it_climbing_nor_sends_it_back(seed):
    noise, policy = np.random.default_rng(seed), HillClimber(2048, LIMIT)

    def seconds_of(rows):
        # Some forwards are disturbed, none is faster than it can be.
        slow = noise.exponential(0.03) + noise.choice([0, 0, 0, 0, 2])
        return overhead(rows) * (1 + slow)

    sizes = settle(policy, seconds_of, forwards=200)
    assert policy.settled
    assert sizes == sorted(sizes)
    assert sizes[-1] >= 4096  # 80 % of what is possible


def test_another_replica_goes_on_where_one_has_settled():
    learned, policy = [], HillClimber(2048, LIMIT)
    policy.on_learned = lambda changed: learned.append(changed.state())
    settle(policy, quadratic)
    assert learned == [{"size": 1024}]
    other = HillClimber(64, LIMIT)
    other.resume(learned[0])
    assert settle(other, overhead) == [1024]


def test_threads_share_one_policy():
    policy = HillClimber(2048, LIMIT)

    def work():
        for _ in range(200):
            size = policy.next_size()
            policy.observe(size, overhead(size))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert policy.settled
    assert policy.size in (8192, 16384, 32768)
