"""A failing batch in pieces: every row once, in order, until one is alone."""

import math

import numpy as np
import pytest

from dask_infer.faults.bisect import HALVES, MANY, RowSearch, split


@pytest.mark.parametrize("parts", [HALVES, 3, MANY])
@pytest.mark.parametrize("count", [2, 3, 15, 16, 17, 1000])
def test_pieces_hold_every_row_once_and_differ_by_one(count, parts):
    pieces = split(slice(5, 5 + count), parts)
    assert [row for piece in pieces for row in range(100_000)[piece]] == [
        *range(5, 5 + count)
    ]
    sizes = [piece.stop - piece.start for piece in pieces]
    assert len(pieces) == min(parts, count)
    assert min(sizes) >= max(1, max(sizes) - 1)


def test_positions_stay_positions_in_their_order():
    rows = np.array([9, 1, 5, 3, 7])
    pieces = split(rows, HALVES)
    assert [len(piece) for piece in pieces] == [2, 3]
    np.testing.assert_array_equal(np.concatenate(pieces), rows)


@pytest.mark.parametrize("positions", [False, True])
def test_rows_that_seem_to_fail_are_cut_off_and_no_piece_is_larger_than_half(positions):
    rows = np.arange(100) if positions else slice(0, 100)
    search = RowSearch()
    pieces = [np.arange(100)[piece] for piece in search.failed(rows, HALVES, [70, 71])]
    assert [len(piece) for piece in pieces] == [50, 20, 1, 29]
    np.testing.assert_array_equal(np.concatenate(pieces), np.arange(100))
    # There is nothing more to learn from smaller batches.
    assert search.instead(slice(100, 200)) is None


@pytest.mark.parametrize("parts", [HALVES, MANY])
@pytest.mark.parametrize("n", [2, 7, 64, 1000, 4096])
def test_one_row_is_alone_after_logarithmically_many_cuts(n, parts):
    for bad in {0, n // 2, n - 1}:
        rows, cuts = slice(0, n), 0
        while rows.stop - rows.start > 1:
            pieces = split(rows, parts)
            rows = next(p for p in pieces if p.start <= bad < p.stop)
            cuts += 1
        assert rows.start == bad
        assert cuts <= math.ceil(math.log(n, parts) - 1e-9)


def run(search, rows, bad, parts=HALVES):
    """Run a batch and all that becomes of it; rows that fail alone, and forwards."""
    queue, failed, forwards = [rows], [], 0
    while queue:
        rows = queue.pop(0)
        if (pieces := search.instead(rows)) is not None:
            queue = [*pieces, *queue]
            continue
        forwards += 1
        held = {*np.arange(100_000)[rows].tolist()}
        if not held & {*bad}:
            search.passed(rows)
        elif len(held) == 1:
            search.alone(rows)
            failed += held
        else:
            queue = [*search.failed(rows, parts), *queue]
    return failed, forwards


@pytest.mark.parametrize(
    ("bad", "forwards"), [(0, 21), (1, 21), (511, 13), (512, 20), (1023, 12)]
)
def test_what_is_known_to_fail_is_not_run(bad, forwards):
    assert run(RowSearch(), slice(0, 1024), [bad]) == ([bad], forwards)


@pytest.mark.parametrize("parts", [HALVES, MANY])
@pytest.mark.parametrize("positions", [False, True])
def test_exactly_the_bad_rows_fail_alone(parts, positions):
    random = np.random.default_rng(0)
    for _ in range(100):
        n = int(random.integers(1, 200))
        bad = random.choice(n, int(random.integers(0, n)), replace=False).tolist()
        rows = random.permutation(n) if positions else slice(0, n)
        failed, _ = run(RowSearch(), rows, bad, parts)
        assert sorted(failed) == sorted(bad)


def test_a_failure_that_does_not_come_again_costs_no_row():
    search, queue, forwards = RowSearch(), [slice(0, 64)], 0
    while queue:
        rows = queue.pop(0)
        if (pieces := search.instead(rows)) is not None:
            queue = [*pieces, *queue]
            continue
        forwards += 1
        if forwards == 1:
            queue = [*search.failed(rows, HALVES), *queue]
        else:
            search.passed(rows)
    assert forwards <= 2 * 6 + 1


def test_batches_shrink_while_they_fail_and_grow_again():
    search, sizes = RowSearch(), []
    for start, fails in zip(range(0, 800, 100), [1, 1, 1, 0, 0, 0, 0, 0], strict=True):
        rows = slice(start, start + 100)
        if (pieces := search.instead(rows)) is not None:
            rows = pieces[0]
        sizes.append(rows.stop - rows.start)
        if fails:
            search.failed(rows, HALVES)
        else:
            search.passed(rows)
    assert sizes == [100, 50, 25, 12, 24, 48, 96, 100]


def test_a_search_costs_little_over_what_there_is_to_learn():
    random, search, forwards, n, p = (
        np.random.default_rng(0),
        RowSearch(),
        0,
        65536,
        0.01,
    )
    bad = np.flatnonzero(random.random(n) < p)
    for start in range(0, n, 2048):
        here = bad[(bad >= start) & (bad < start + 2048)].tolist()
        failed, count = run(search, slice(start, start + 2048), here)
        assert sorted(failed) == here
        forwards += count
    entropy = -n * (p * math.log2(p) + (1 - p) * math.log2(1 - p))
    assert forwards < 1.4 * entropy
