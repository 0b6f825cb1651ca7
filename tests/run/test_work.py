"""The queue of a partition's rows: each row once, whatever does not fit."""

import numpy as np
import pytest

from dask_infer.batch.sizing.batch_size import BatchSize
from dask_infer.batch.sizing.hill_climber import FixedSize
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.run.work import ConsecutiveWork, SortedWork, row_count


def run(work, fits):
    """Take every batch; those that do not fit are halved. Rows that ran, in order."""
    done, sizes = [], []
    while (rows := work.take()) is not None:
        taken = rows
        rows = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        if not fits(rows):
            work.halve(taken)
            continue
        sizes.append(len(rows))
        done.extend(rows)
        work.observe(taken, 1e-3)
    return done, sizes


@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_consecutive_rows_in_order(size):
    done, sizes = run(ConsecutiveWork(10, FixedSize(size)), lambda rows: True)
    assert done == list(range(10))
    assert max(sizes) <= size


@pytest.mark.parametrize(
    ("rows", "wanted", "most", "sizes"),
    [
        (48, 35, 53, [48]),
        (48, 30, 45, [24, 24]),
        (48, 35, 17, [16, 16, 16]),
        (10, 4, 6, [5, 5]),
        (10, 4, 4, [4, 3, 3]),
        (11, 4, 6, [4, 4, 3]),
        (3, 9, 14, [3]),
        (7, 1, 2, [1] * 7),
    ],
)
def test_even_batches_leave_no_small_one_last(rows, wanted, most, sizes):
    work = ConsecutiveWork(rows, FixedSize(most), wanted=wanted)
    assert run(work, lambda rows: True) == (list(range(rows)), sizes)


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_what_does_not_fit_is_run_in_smaller_batches(most):  # DI-09
    size = FixedSize(10)
    done, sizes = run(ConsecutiveWork(23, size), lambda rows: len(rows) <= most)
    assert done == list(range(23))
    assert max(sizes) <= most
    assert size.size <= most  # for the partitions that follow


def test_automatic_sizes_lose_no_row():
    size = BatchSize()
    size.start(4)
    done, _ = run(ConsecutiveWork(100_000, size), lambda rows: len(rows) <= 700)
    assert done == list(range(100_000))


@pytest.mark.parametrize("budget", [4, 50, 10_000])
@pytest.mark.parametrize("most", [1, 5, 1000])
def test_sorted_rows_run_once_each(budget, most):
    lengths = np.random.default_rng(0).integers(0, 30, 200)
    tokens = TokenBudget(budget)
    done, sizes = run(SortedWork(lengths, tokens, 200), lambda rows: len(rows) <= most)
    assert sorted(done) == list(range(200))
    assert max(sizes) <= most


def test_longest_rows_come_first_within_the_budget():  # RY-5
    lengths = np.array([1, 9, 3, 9, 2, 1])
    work = SortedWork(lengths, TokenBudget(18), 6)
    first = work.take()
    assert set(first) == {1, 3}
    assert len(first) * lengths[first].max() <= 18


def test_tokens_that_did_not_fit_are_remembered():  # DI-09
    lengths, tokens = np.full(64, 10), TokenBudget(640)
    run(SortedWork(lengths, tokens, 64), lambda rows: len(rows) <= 8)
    assert tokens.size <= 80
    _, sizes = run(SortedWork(lengths, tokens, 64), lambda rows: True)
    assert max(sizes) <= 8


@pytest.mark.parametrize("sort", [False, True])
def test_any_rows_may_come_back_while_others_are_in_flight(sort):
    lengths = np.arange(12)
    work = (
        SortedWork(lengths, TokenBudget(1000), 4)
        if sort
        else ConsecutiveWork(12, FixedSize(4))
    )
    first, second = work.take(), work.take()
    half = (
        [first[:1], first[1:]]
        if sort
        else [slice(first.start, first.start + 1), slice(first.start + 1, first.stop)]
    )
    work.put_back(first, half)
    taken = [work.take() for _ in range(3)]
    assert work.take() is None
    counts = [row_count(rows) for rows in [second, *taken]]
    assert counts == [4, 1, 3, 4]
    rows = np.concatenate([np.arange(12)[r] for r in [second, *taken]])
    assert sorted(rows) == list(range(12))


@pytest.mark.parametrize("sort", [False, True])
def test_rows_that_did_not_fit_run_once_while_others_are_in_flight(sort):  # DI-09
    lengths = np.full(64, 10)
    work = (
        SortedWork(lengths, TokenBudget(320), 64)
        if sort
        else ConsecutiveWork(64, FixedSize(32))
    )
    first, second = work.take(), work.take()
    work.halve(first)
    done = [*np.arange(64)[second]]
    while (rows := work.take()) is not None:
        assert row_count(rows) <= 16
        done.extend(np.arange(64)[rows])
    assert sorted(done) == list(range(64))
