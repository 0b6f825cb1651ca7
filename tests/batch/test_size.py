"""The batch-size policy is a state machine: tables of what it saw and chose."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from dask_infer.batch.size import (
    MOST_ROWS,
    OBSERVATIONS,
    WARM_UP,
    BatchSize,
    FixedSize,
)


def climb(policy, seconds_of, forwards=100):
    """Let `policy` see full batches; return the sizes it went through."""
    sizes = [policy.size]
    for _ in range(forwards):
        policy.observe(policy.size, seconds_of(policy.size))
        if policy.size != sizes[-1]:
            sizes.append(policy.size)
    return sizes


def overhead(rows):
    return 1e-3 + rows * 1e-6


def quadratic(rows):
    return 1e-3 + rows * 1e-6 + (rows / 4096) ** 2 * 1e-2


@pytest.mark.parametrize(
    ("bytes_per_row", "free", "first", "limit"),
    [
        (128, None, 2048, 131_072),
        (0, None, 32, 131_072),
        (1, 1 << 30, 4096, 131_072),
        (602_112, None, 8, 131_072),
        (602_112, 1 << 30, 8, 13),
        (602_112, 1 << 20, 1, 1),
        (128, 0, 1, 1),
    ],
)
def test_projection(bytes_per_row, free, first, limit):
    policy = BatchSize()
    assert policy.start(bytes_per_row, 0, free) == first == policy.size
    assert policy.limit == limit
    assert not policy.settled


@pytest.mark.parametrize(
    ("bytes_per_row", "first", "limit"), [(128, 2048, 65_536), (602_112, 8, 13)]
)
def test_rows_are_weighed_with_the_first_batch(bytes_per_row, first, limit):
    policy = BatchSize()
    assert policy.start(0, free_bytes=1 << 30) == 32
    policy.weigh(bytes_per_row)
    assert (policy.size, policy.limit) == (first, limit)
    policy.weigh(1)
    assert (policy.size, policy.limit) == (first, limit)


def test_a_remembered_size_of_unknown_rows_bends_to_memory():
    policy = BatchSize()
    policy.start(0, free_bytes=1 << 30)
    policy.resume({"size": 4096})
    policy.weigh(602_112)
    assert policy.size == 13


def test_projection_leaves_room_for_weights_not_yet_loaded():
    policy = BatchSize()
    policy.start(128, nbytes_model=1 << 30, free_bytes=1 << 30)
    assert policy.size == 1


@pytest.mark.parametrize(
    ("seconds_of", "sizes"),
    [
        # 2048 rows take 3.0 ms, 16384 take 17.4: then a doubling brings under 5 %.
        (overhead, [2048, 4096, 8192, 16384, 32768, 16384]),
        # From 4096 rows on the caches are too small.
        (quadratic, [2048, 4096, 2048]),
        (lambda rows: rows * 1e-6, [2048, 4096, 2048]),
    ],
)
def test_doubles_while_the_rate_grows_and_settles_at_the_best(seconds_of, sizes):
    policy = BatchSize()
    policy.start(128)
    assert climb(policy, seconds_of) == sizes
    assert policy.settled


def test_never_beyond_the_memory_limit():
    policy = BatchSize()
    policy.start(128, 0, 4096 * 128 * 32 * 5)
    assert max(climb(policy, overhead)) == 4096
    assert policy.settled


def test_settled_size_ignores_what_comes_later():
    policy = BatchSize()
    policy.start(128)
    climb(policy, quadratic)
    assert climb(policy, overhead) == [policy.size]


def test_first_forward_and_other_sizes_tell_nothing():
    policy = BatchSize()
    policy.start(128)
    for _ in range(WARM_UP):
        policy.observe(2048, 60.0)
    for _ in range(10):
        policy.observe(17, 1e-6)
    assert policy.size == 2048
    for _ in range(OBSERVATIONS):
        policy.observe(2048, 1e-3)
    assert policy.size == 4096


def test_one_slow_forward_does_not_end_the_climb():
    policy = BatchSize()
    policy.start(128)
    for rows, seconds in [
        *[(2048, 1.0)] * WARM_UP,
        *[(2048, 3e-3)] * OBSERVATIONS,
        *[(4096, 9.0)] * (OBSERVATIONS - 1),
        (4096, 5e-3),
    ]:
        policy.observe(rows, seconds)
    assert policy.size == 8192


# DI-09
def test_out_of_memory_halves_and_caps_for_good():
    policy = BatchSize()
    policy.start(128)
    assert policy.on_out_of_memory(2048) == 1024
    assert policy.on_out_of_memory(1024) == 512
    assert policy.settled
    assert policy.start(128) == 512
    assert climb(policy, overhead) == [512]


def test_out_of_memory_while_climbing_returns_to_the_best_that_fitted():
    policy = BatchSize()
    policy.start(128)
    for _ in range(WARM_UP + OBSERVATIONS):
        policy.observe(2048, 1e-3)
    assert policy.size == 4096
    assert policy.on_out_of_memory(4096) == 2048


@pytest.mark.parametrize("policy", [FixedSize(64), BatchSize()], ids=repr)
def test_out_of_memory_at_one_row_stays_at_one_row(policy):
    assert policy.on_out_of_memory(1) == 1
    assert policy.size == 1


# DI-09, SP-05
def test_fixed_size_is_a_bound_that_only_memory_lowers():
    policy = FixedSize(100)
    assert climb(policy, overhead) == [100]
    assert policy.on_out_of_memory(100) == 50
    assert policy.on_out_of_memory(100) == 50
    assert repr(policy) == "<FixedSize 50 rows, settled>"


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "auto", None])
def test_fixed_size_refuses_what_is_no_number_of_rows(size):
    with pytest.raises(ValueError, match="positive whole number"):
        FixedSize(size)


@pytest.mark.parametrize("seed", range(10))
def test_noise_neither_keeps_it_climbing_nor_sends_it_back(seed):
    noise, policy = np.random.default_rng(seed), BatchSize()
    policy.start(128)

    def seconds_of(rows):
        # Some forwards are disturbed, none is faster than it can be.
        return overhead(rows) * (1 + noise.exponential(0.05) + noise.choice([0, 0, 2]))

    sizes = climb(policy, seconds_of, forwards=200)
    assert policy.settled
    assert sizes[:-1] == sorted(sizes[:-1])  # up, and at most one step back
    rate = policy.size / overhead(policy.size)
    assert rate > 0.85 * MOST_ROWS / overhead(MOST_ROWS)


def test_another_replica_goes_on_where_one_has_settled():
    told, policy = [], BatchSize()
    policy.start(128)
    policy.on_learned = lambda changed: told.append(changed.state())
    climb(policy, quadratic)
    assert told == [{"size": 2048}]
    other = BatchSize()
    other.start(128)
    other.resume(told[0])
    assert climb(other, overhead) == [2048]


def test_a_remembered_size_bends_to_memory():  # DI-09
    policy = BatchSize()
    policy.start(1024, free_bytes=32 * 4 * 1024 * 100)
    policy.resume({"size": 4096})
    assert policy.size == 100
    assert policy.on_out_of_memory(100) == 50


def test_threads_share_one_policy():
    policy = BatchSize()
    policy.start(128)

    def work():
        for _ in range(200):
            size = policy.size
            policy.observe(size, overhead(size))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert policy.settled
    assert policy.size in (8192, 16384, 32768)
