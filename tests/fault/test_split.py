"""A failing batch in pieces: every row once, in order, until one is alone."""

import math

import numpy as np
import pytest

from dask_infer.fault.split import HALVES, MANY, split


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
    assert [len(piece) for piece in pieces] == [3, 2]
    np.testing.assert_array_equal(np.concatenate(pieces), rows)


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
