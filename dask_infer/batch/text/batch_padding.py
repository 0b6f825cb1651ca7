"""Rows of tokens padded to the longest of a batch, and the padding cut off again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dask_infer.batch.tensor.rows import Array, Positions, Rows

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class Padding:
    """How the rows of a batch are padded; without `lengths` they are not."""

    #: Real tokens of each row.
    lengths: Array | None = None
    #: Tokens of the padded axis; 0 where nothing is padded.
    width: int = 0
    #: Where the padding of each row is.
    side: Side = "right"

    @property
    def cuts(self) -> bool:
        """Whether any row is padded."""
        return self.lengths is not None and bool((self.lengths != self.width).any())

    def covers(self, value: Any) -> bool:
        """Whether the second axis of an array is as long as the padded one."""
        shape = tuple(getattr(value, "shape", ()))
        return self.lengths is not None and shape[1:2] == (self.width,)

    def trim(self, array: Array) -> tuple[Array, Array]:
        """Return the rows end to end without padding, and how long each is."""
        rows, width = array.shape[:2]
        lengths = np.full(rows, width)
        if self.covers(array):
            lengths = np.minimum(np.asarray(self.lengths), width)
        if (lengths == width).all():
            return array.reshape(rows * width, *array.shape[2:]), lengths
        return array[real_tokens(lengths, width, self.side)], lengths


#: Of a batch whose rows have no padded axis.
NOT_PADDED = Padding()


def real_tokens(lengths: Array, width: int, side: Side = "right") -> Array:
    """``(n, width)`` mask: True where a row has a token, False where padding."""
    position, ends = np.arange(width), lengths[:, None]
    return np.asarray(position >= width - ends if side == "left" else position < ends)


def padding_of(mask: Array) -> Padding:
    """Return the padding that an ``(n, width)`` mask shows; none if on neither side."""
    lengths, width = mask.sum(axis=1), mask.shape[1]
    sides: tuple[Side, ...] = ("right", "left")
    for side in sides:
        if np.array_equal(mask, real_tokens(lengths, width, side)):
            return Padding(lengths, width, side)
    return NOT_PADDED


def pad(
    rows: Rows, positions: Positions, fill: int = 0, side: Side = "right"
) -> tuple[Array, Array]:
    """Return ragged rows as a ``(b, longest)`` array, and the mask of real tokens.

    Never narrower than one column: models fail on no tokens at all. Integers become
    int64.
    """
    assert rows.offsets is not None
    starts, ends = rows.offsets[:-1][positions], rows.offsets[1:][positions]
    lengths = ends - starts
    width = max(1, int(lengths.max(initial=0)))
    mask = real_tokens(lengths, width, side)
    dtype = np.int64 if rows.values.dtype.kind in "iub" else rows.values.dtype
    block = np.full((len(lengths), width), fill, dtype)
    shift = starts - (np.cumsum(lengths) - lengths)
    block[mask] = rows.values[np.repeat(shift, lengths) + np.arange(lengths.sum())]
    return block, mask
