"""The automatic batch size starts from what rows and the free memory look like."""

from __future__ import annotations

import pytest

from dask_infer.batch.sizing.batch_size import BatchSize


def overhead(rows):
    return 1e-3 + rows * 1e-6


def run(policy, forwards=200):
    """Let it see full batches; return the sizes that were tried."""
    tried = []
    for _ in range(forwards):
        tried.append(policy.next_size())
        policy.observe(tried[-1], overhead(tried[-1]))
    return tried


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
    assert policy.start(bytes_per_row, free) == first == policy.size
    assert policy.limit == limit
    assert policy.settled == (2 * first > limit)  # a trial of the double would not fit


@pytest.mark.parametrize(
    ("bytes_per_row", "first", "limit"), [(128, 2048, 65_536), (602_112, 8, 13)]
)
def test_bytes_of_a_row_are_learned_from_the_first_batch(bytes_per_row, first, limit):
    policy = BatchSize()
    assert policy.start(0, free_bytes=1 << 30) == 32
    policy.observe_row_bytes(bytes_per_row)
    assert (policy.size, policy.limit) == (first, limit)
    policy.observe_row_bytes(1)
    assert (policy.size, policy.limit) == (first, limit)


def test_a_remembered_size_of_unknown_rows_bends_to_memory():
    policy = BatchSize()
    policy.start(0, free_bytes=1 << 30)
    policy.resume({"size": 4096})
    policy.observe_row_bytes(602_112)
    assert policy.size == 13


def test_a_remembered_size_bends_to_memory():  # DI-09
    policy = BatchSize()
    policy.start(1024, free_bytes=32 * 4 * 1024 * 100)
    policy.resume({"size": 4096})
    assert policy.size <= 100


def test_never_beyond_the_memory_limit():  # DI-09
    policy = BatchSize()
    policy.start(128, 4096 * 128 * 32 * 5)
    assert max(run(policy)) == policy.size == 4096
    assert policy.settled


def test_a_size_that_did_not_fit_stays_out():  # DI-09
    policy = BatchSize()
    policy.start(128)
    assert policy.on_out_of_memory(1024) == 512
    assert policy.start(128) == 512
    assert max(run(policy)) == 512
