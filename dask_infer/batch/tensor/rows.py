"""Rows of numbers, end to end in one block of memory.

What list and tensor columns have in common, whatever held them: pure NumPy, and
nothing here is written to once it is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dask_infer.errors import InputError

Array: TypeAlias = npt.NDArray[Any]

#: Shape of one row; None is an axis that is not known, or differs from row to row.
Shape: TypeAlias = tuple[int | None, ...]

#: Where the rows of a batch are in a partition: consecutive, or one by one.
Positions: TypeAlias = slice | npt.NDArray[Any]


UNEVEN = (
    "holds {} values where the rows before it hold {}; pad or cut the lists to one "
    "length, in preprocess= say"
)


class BadRow(InputError):
    """Rows that cannot be stacked; a caller that knows the column adds its name."""

    def __init__(self, reason: str, position: int | None = None) -> None:
        super().__init__(reason if position is None else f"row {position} {reason}")
        self.reason = reason
        #: Which row, counted from 0; None where it is the column's fault.
        self.position = position

    def moved(self, positions: Array) -> BadRow:
        """Return the same complaint about the row that `positions` maps to."""
        if self.position is None:
            return self
        return BadRow(self.reason, int(positions[self.position]))


@dataclass(frozen=True, eq=False)
class Rows:
    """`n` rows, dense or ragged, some of them missing.

    Missing rows hold NaN, or 0 where the dtype has none; when ragged they have no
    length. So equal rows have equal memory.
    """

    #: ``(n, *shape)`` when dense, ``(total, *inner)`` when ragged. Read-only.
    values: Array
    #: ``(n + 1,)`` int64 that starts at 0; None when dense.
    offsets: Array | None = None
    #: ``(n,)`` bool; None where no row is missing.
    missing: Array | None = None

    def __post_init__(self) -> None:
        view = self.values.view()
        view.flags.writeable = False
        object.__setattr__(self, "values", view)

    def __len__(self) -> int:
        return len(self.values if self.offsets is None else self.offsets[1:])

    @property
    def shape(self) -> Shape:
        """Shape of one row; a leading None where lengths differ."""
        inner = self.values.shape[1:]
        return inner if self.offsets is None else (None, *inner)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, their offsets and the mask."""
        parts = (self.values, self.offsets, self.missing)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def lengths(self) -> Array:
        """Length of each ragged row."""
        assert self.offsets is not None
        return np.diff(self.offsets)

    @property
    def absent(self) -> Array:
        """Which rows are missing, as a mask that is always there."""
        return np.zeros(len(self), bool) if self.missing is None else self.missing

    def row(self, position: int) -> Array:
        """Return one row as an array, without a copy."""
        if self.offsets is None:
            return np.asarray(self.values[position])
        return self.values[self.offsets[position] : self.offsets[position + 1]]

    def slice(self, start: int, stop: int) -> Rows:
        """Return the rows from `start` to `stop`, without a copy of their values."""
        missing = None if self.missing is None else self.missing[start:stop]
        if self.offsets is None:
            return Rows(self.values[start:stop], None, _any(missing))
        offsets = self.offsets[start : stop + 1]
        values = self.values[offsets[0] : offsets[-1]]
        return Rows(values, offsets - offsets[0], _any(missing))

    def take(self, indices: Array) -> Rows:
        """Return the rows at `indices`; -1 gives a missing one."""
        missing = indices < 0
        if self.missing is not None and len(self):
            missing |= self.missing[indices]
        if self.offsets is not None:
            return self._ragged_take(indices, missing)
        values = self.values
        if not len(self):
            values = np.zeros((1, *values.shape[1:]), values.dtype)
        # -1 fetches the last row, which is blanked here while the block is ours.
        block = values.take(indices, axis=0)
        block[missing] = _blank(block.dtype)
        return Rows(block, None, _any(missing))

    def _ragged_take(self, indices: Array, missing: Array) -> Rows:
        assert self.offsets is not None
        here = np.where(missing, 0, indices)
        starts = np.append(self.offsets[:-1], 0)[here]
        lengths = np.where(missing, 0, np.append(np.diff(self.offsets), 0)[here])
        offsets = offsets_of(lengths)
        gather = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Rows(self.values.take(gather, axis=0), offsets, _any(missing))

    def astype(self, value: np.dtype[Any]) -> Rows:
        """Cast the values; missing rows stay missing."""
        if value == self.values.dtype:
            return self
        if self.missing is None or self.offsets is not None:
            return Rows(self.values.astype(value), self.offsets, self.missing)
        # NaN has no integer: blank the missing rows before they are cast.
        present = np.where(row_mask(self.missing, self.values), 0, self.values)
        return masked(present.astype(value), self.missing)

    def ragged(self) -> Rows:
        """Return the same rows with offsets, missing ones without length."""
        if self.offsets is not None:
            return self
        lengths = np.full(len(self), self.values.shape[1])
        values = self.values
        if self.missing is not None:
            lengths[self.missing] = 0
            values = values[~self.missing]
        flat = values.reshape(lengths.sum(), *values.shape[2:])
        return Rows(flat, offsets_of(lengths), self.missing)

    def dense(self, uneven: str = UNEVEN) -> Rows:
        """Return the same rows as one ``(n, *shape)`` block.

        Raises
        ------
        BadRow
            Where rows differ in length: `uneven`, with both lengths.
        """
        if self.offsets is None:
            return self
        lengths = self.lengths
        present = np.flatnonzero(~self.absent)
        length = int(lengths[present[0]]) if len(present) else 0
        wrong = present[lengths[present] != length]
        if len(wrong):
            reason = uneven.format(lengths[wrong[0]], length)
            raise BadRow(reason, int(wrong[0]))
        inner = self.values.shape[1:]
        block = Rows(self.values.reshape(len(present), length, *inner))
        return block if self.missing is None else block.spread(self.missing)

    def folded(self, shape: Shape) -> Rows:
        """Return the rows as a dense block ``(n, *shape)``, each folded into `shape`.

        A leading None in `shape` leaves that axis to the data.

        Raises
        ------
        BadRow
            Where a row holds more or fewer numbers than `shape` does.
        """
        known = tuple(size for size in shape if size is not None)
        present = ~self.absent
        numbers = math.prod(self.values.shape[1:])
        counts = np.full(len(self), numbers)
        if self.offsets is not None:
            counts = self.lengths * numbers
        if len(known) < len(shape):
            found = counts[present][:1].sum()
            known = (int(found) // max(math.prod(known), 1), *known)
            self.dense()  # names a row of another length
        if not present.any():
            return masked(np.zeros((len(self), *known), self.values.dtype), ~present)
        need = math.prod(known)
        wrong = np.flatnonzero((counts != need) & present)
        if len(wrong):
            raise BadRow(
                f"holds {counts[wrong[0]]} values where shape {known} takes {need}; "
                "correct shapes=, or bring the rows to one length in preprocess=",
                int(wrong[0]),
            )
        block = self.dense().values
        return Rows(block.reshape(len(self), *known), None, self.missing)

    def spread(self, missing: Array) -> Rows:
        """Put these rows where `missing` is False, and missing ones between them."""
        return self.take(np.where(missing, -1, np.cumsum(~missing) - 1))

    def filled(self) -> Array:
        """Return ``(n, *shape)`` with NaN in missing rows.

        Raises
        ------
        BadRow
            Where rows differ in length, or an integer or boolean row is missing.
        """
        if self.missing is not None and self.values.dtype.kind != "f":
            raise BadRow(
                f"is missing, and {self.values.dtype} has no NaN; drop or fill the "
                'missing rows, or predict with on_error="null"',
                int(self.missing.argmax()),
            )
        return self.dense().values


def masked(values: Array, missing: Array) -> Rows:
    """Dense rows of which some are missing; copies where any is."""
    if not missing.any():
        return Rows(values)
    blank = _blank(values.dtype)
    return Rows(np.where(row_mask(missing, values), blank, values), None, missing)


def offsets_of(lengths: Array) -> Array:
    """Return where rows of these lengths start, and the end of the last."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def join(parts: Sequence[Rows]) -> Rows:
    """Rows of equal shape and dtype, one after the other."""
    absent = np.concatenate([part.absent for part in parts])
    values = np.concatenate([part.values for part in parts])
    if parts[0].offsets is None:
        return Rows(values, None, _any(absent))
    lengths = np.concatenate([part.lengths for part in parts])
    return Rows(values, offsets_of(lengths), _any(absent))


def _blank(value: np.dtype[Any]) -> Any:
    return value.type(np.nan if value.kind == "f" else 0)


def _any(missing: Array | None) -> Array | None:
    return missing if missing is not None and missing.any() else None


def row_mask(missing: Array, values: Array) -> Array:
    """Reshape the mask so that it covers whole rows of `values`."""
    return missing.reshape(-1, *[1] * (values.ndim - 1))
