"""Padding is known of a mask, and cut off on the side where it is."""

from __future__ import annotations

import numpy as np
import pytest

from dask_infer.batch.text.batch_padding import (
    NOT_PADDED,
    Padding,
    padding_of,
    real_tokens,
)

LENGTHS = np.array([2, 3, 1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mask_shows_lengths_and_side(side):
    padding = padding_of(real_tokens(LENGTHS, 3, side))
    assert padding.lengths.tolist() == LENGTHS.tolist()
    assert (padding.width, padding.side) == (3, side)


def test_a_mask_with_holes_is_no_padding():
    assert padding_of(np.array([[True, False, True]])) is NOT_PADDED


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_cut_to_their_tokens(side):
    mask = real_tokens(LENGTHS, 3, side)
    flat, lengths = Padding(LENGTHS, 3, side).trim(np.where(mask, 7, 0))
    assert (flat.tolist(), lengths.tolist()) == ([7] * 6, LENGTHS.tolist())


@pytest.mark.parametrize("padding", [NOT_PADDED, Padding(LENGTHS, 5)])
def test_another_axis_is_left_alone(padding):
    array = np.arange(12).reshape(3, 4)
    assert not padding.covers(array)
    flat, lengths = padding.trim(array)
    assert (flat.tolist(), lengths.tolist()) == (list(range(12)), [4, 4, 4])


def test_full_rows_have_nothing_to_cut():
    assert not Padding(np.array([3, 3]), 3).cuts
    assert Padding(LENGTHS, 3).cuts
    assert not NOT_PADDED.cuts
