"""The pandas array of a column that holds one array a row.

NumPy memory, handed to Arrow and taken from it without a copy. Slices pickle only
themselves. Arrays are never written to in place: assignment makes a new block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.extensions import ExtensionArray
from pandas.api.indexers import check_array_indexer

from dask_infer.batch.tensor.arrow import from_arrow, is_list, to_arrow
from dask_infer.batch.tensor.objects import from_objects
from dask_infer.batch.tensor.rows import Array, Rows, join, masked
from dask_infer.batch.tensor.tensor_dtype import TensorDtype
from dask_infer.errors import InputError

__all__ = ["TensorArray", "TensorDtype"]

ORDERLESS = (
    "a tensor column has neither order nor hash, so it cannot be sorted, grouped, "
    "joined or deduplicated by; use another column"
)


class TensorArray(ExtensionArray):
    """A column of arrays; see `TensorDtype`.

    Made by `from_numpy`, `from_ragged`, or ``pandas.array(rows, dtype=dtype)``.
    """

    #: The rows as NumPy holds them; never written to.
    rows: Rows
    _dtype: TensorDtype

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._dtype = TensorDtype(rows.values.dtype, rows.shape)

    @classmethod
    def from_numpy(cls, values: Array, missing: Array | None = None) -> TensorArray:
        """Take ``(n, *shape)`` as `n` rows, without a copy where none is missing.

        Parameters
        ----------
        values
            Numbers in native byte order, two axes at least.
        missing
            ``(n,)`` booleans, True where the row is missing.
        """
        values = np.asarray(values)
        if values.ndim < 2:
            raise ValueError(f"shape {values.shape}: expected (n, *shape of a row)")
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if missing is None:
            return cls(Rows(values))
        return cls(masked(values, np.asarray(missing, bool)))

    @classmethod
    def from_ragged(cls, values: Array, offsets: Array) -> TensorArray:
        """Take ``values[offsets[i]:offsets[i + 1]]`` as row `i`.

        Parameters
        ----------
        values
            ``(total, *inner)``, all rows end to end.
        offsets
            ``(n + 1,)`` integers that never fall.
        """
        offsets = np.asarray(offsets).astype(np.int64, copy=False)
        values = np.asarray(values)
        ends = (offsets[0], offsets[-1])
        if (np.diff(offsets) < 0).any() or ends[0] < 0 or ends[1] > len(values):
            raise ValueError(
                f"offsets must rise from 0 to {len(values)}, the number of values"
            )
        return cls(Rows(values[ends[0] : ends[1]], offsets - offsets[0]))

    @classmethod
    def synthetic(cls, dtype: TensorDtype) -> TensorArray:
        """Two rows of ones, as Dask wants examples of a dtype."""
        ones = np.ones((2, *(n or 1 for n in dtype.shape)), dtype.value)
        return cls._conform(Rows(ones), dtype)

    @classmethod
    def _from_sequence(
        cls, scalars: Any, *, dtype: Any = None, copy: bool = False
    ) -> TensorArray:
        rows = _rows_of(scalars)
        if dtype is None:
            return cls(rows)
        if isinstance(dtype, str):
            dtype = TensorDtype.construct_from_string(dtype)
        return cls._conform(rows, dtype)

    @classmethod
    def _conform(cls, rows: Rows, dtype: TensorDtype) -> TensorArray:
        """Bring rows to a dtype; flat rows are folded where the numbers fit."""
        if dtype.is_ragged:
            rows = rows.ragged()
            if not len(rows.values):
                nothing = np.zeros((0, *(n or 0 for n in dtype.shape[1:])))
                rows = Rows(nothing, rows.offsets, rows.missing)
        else:
            rows = rows.folded(dtype.shape)
        array = cls(rows.astype(dtype.value))
        if array.dtype != dtype:
            raise InputError(f"rows of {array.dtype.name} cannot become {dtype.name}")
        return array

    def to_dense(self, dtype: Any = None) -> Array:
        """Return ``(n, *shape)``, NaN in missing rows; read-only where it is a view.

        Raises
        ------
        InputError
            Where rows differ in length, or an integer row is missing.
        """
        values = self.rows.filled()
        return values if dtype is None else values.astype(dtype, copy=False)

    def to_ragged(self) -> tuple[Array, Array]:
        """Return the values end to end ``(total, *inner)``, and the offsets of rows."""
        rows = self.rows.ragged()
        assert rows.offsets is not None
        return rows.values, rows.offsets

    @property
    def dtype(self) -> TensorDtype:
        """What the rows hold, and their shape."""
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes of these rows alone, not of an array they are a slice of."""
        return self.rows.nbytes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: Any) -> Any:
        item = check_array_indexer(self, _unpacked(item))
        if isinstance(item, (int, np.integer)):
            return self._scalar(_within(int(item), len(self)))
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            if step == 1:
                return type(self)(self.rows.slice(start, max(start, stop)))
        return type(self)(self.rows.take(np.arange(len(self))[item]))

    def _scalar(self, position: int) -> Any:
        missing = self.rows.missing
        if missing is not None and missing[position]:
            return self.dtype.na_value
        return self.rows.row(position)

    def __iter__(self) -> Iterator[Any]:
        return map(self._scalar, range(len(self)))

    def __setitem__(self, key: Any, value: Any) -> None:
        if getattr(self, "_readonly", False):
            raise ValueError("Cannot modify read-only array")
        key = check_array_indexer(self, _unpacked(key))
        new = self._boxed(value, scalar=isinstance(key, (int, np.integer)))
        source = np.arange(len(self))
        wanted = source[key].size
        if len(new) not in (1, wanted):
            raise ValueError(f"{len(new)} rows cannot be assigned to {wanted}")
        source[key] = len(self) + (np.arange(wanted) if len(new) > 1 else 0)
        self.rows = join([self.rows, new.rows]).take(source)

    def _boxed(self, value: Any, scalar: bool) -> TensorArray:
        """Rows of this dtype out of one row, several, or a missing value."""
        rank = len(self.dtype.shape)
        one = scalar or (isinstance(value, np.ndarray) and value.dtype != object)
        if pd.api.types.is_scalar(value) or (one and np.ndim(value) == rank):
            value = [value]
        return self._from_sequence(value, dtype=self.dtype)

    def take(
        self,
        indices: Any,
        *,
        allow_fill: bool = False,
        fill_value: Any = None,
    ) -> TensorArray:
        """Return the rows at `indices`; with `allow_fill`, -1 gives `fill_value`."""
        wanted = np.asarray(indices, dtype=np.intp)
        n = len(self)
        if (wanted >= n).any() or (wanted < (-1 if allow_fill else -n)).any():
            if allow_fill and (wanted < -1).any():
                raise ValueError("indices below -1 are not allowed with allow_fill")
            raise IndexError(f"indices are out of bounds for {n} rows")
        if not allow_fill:
            return type(self)(self.rows.take(np.where(wanted < 0, wanted + n, wanted)))
        taken = type(self)(self.rows.take(wanted))
        if not pd.api.types.is_scalar(fill_value):
            taken[wanted == -1] = fill_value
        return taken

    def copy(self) -> TensorArray:
        """Return the same rows in memory of their own."""
        rows = self.rows
        return type(self)(Rows(rows.values.copy(), rows.offsets, rows.missing))

    def isna(self) -> Array:
        """Mask of the missing rows; a NaN inside a row makes none."""
        return self.rows.absent.copy()

    @classmethod
    def _concat_same_type(cls, to_concat: Sequence[TensorArray]) -> TensorArray:
        return cls(join([array.rows for array in to_concat]))

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """Cast values and shape, or give Arrow lists or an object array of rows."""
        dtype = pd.api.types.pandas_dtype(dtype)
        if dtype == self.dtype:
            return self.copy() if copy else self
        if isinstance(dtype, TensorDtype):
            return self._conform(self.rows, dtype)
        if isinstance(dtype, pd.ArrowDtype):
            array = to_arrow(self.rows).cast(dtype.pyarrow_dtype)
            return pd.arrays.ArrowExtensionArray(array)
        return super().astype(dtype, copy=copy)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a tensor column becomes an array of rows by a copy only")
        if dtype is not None and np.dtype(dtype) != object:
            raise TypeError(
                f"rows of {self.dtype.name} are no {np.dtype(dtype)}; use to_dense()"
            )
        return np.fromiter(self, object, len(self))

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        array = to_arrow(self.rows)
        return array if type is None or array.type == type else array.cast(type)

    def __eq__(self, other: Any) -> Any:
        """Row by row, True where all numbers are equal; missing equals nothing."""
        if isinstance(other, (pd.Series, pd.Index, pd.DataFrame)):
            return NotImplemented
        if not isinstance(other, TensorArray):
            try:
                other = self._boxed(other, scalar=False)
            except (InputError, TypeError, ValueError):
                return np.zeros(len(self), bool)
        if len(other) == 1 != len(self):
            other = other.take(np.zeros(len(self), np.intp))
        if len(other) != len(self):
            raise ValueError(f"Lengths must match: {len(self)} and {len(other)} rows")
        return _same(self.rows, other.rows)

    def equals(self, other: object) -> bool:
        """Whether dtype, missing rows and all numbers are equal, NaN equal to NaN."""
        if not isinstance(other, TensorArray) or self.dtype != other.dtype:
            return False
        one, two = self.rows, other.rows  # equal rows have equal memory
        return (
            np.array_equal(one.absent, two.absent)
            and (one.offsets is None or np.array_equal(one.lengths, two.lengths))
            and np.array_equal(one.values, two.values, equal_nan=True)
        )

    def _formatter(self, boxed: bool = False) -> Any:
        return _short

    def __reduce__(self) -> Any:
        return (type(self), (self.rows,))

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        rows = self.rows
        return (type(self).__name__, rows.values, rows.offsets, rows.missing)

    def _orderless(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(ORDERLESS)

    factorize = unique = duplicated = value_counts = _orderless
    _values_for_factorize = _values_for_argsort = argsort = isin = _orderless
    _hash_pandas_object = searchsorted = _orderless


TensorDtype.array_type = TensorArray


def _rows_of(scalars: Any) -> Rows:
    """Rows of anything list-like: arrays, lists, Arrow, or a block ``(n, *shape)``."""
    scalars = getattr(scalars, "array", scalars)
    if isinstance(scalars, TensorArray):
        return scalars.rows
    if isinstance(scalars, (pa.Array, pa.ChunkedArray)):
        scalars = pd.arrays.ArrowExtensionArray(scalars)
    arrow = getattr(getattr(scalars, "dtype", None), "pyarrow_dtype", None)
    if arrow is not None and is_list(arrow):
        return from_arrow(pa.array(scalars))
    if isinstance(scalars, np.ndarray) and scalars.ndim > 1 and scalars.dtype != object:
        return Rows(scalars)
    return from_objects(np.fromiter(scalars, object))


def _same(left: Rows, right: Rows) -> Array:
    """Which rows are there on both sides, and equal throughout."""
    one, two = left.ragged(), right.ragged()
    if one.values.shape[1:] != two.values.shape[1:]:
        return np.zeros(len(left), bool)
    same = ~(left.absent | right.absent) & (one.lengths == two.lengths)
    picked = np.flatnonzero(same)
    one, two = one.take(picked), two.take(picked)
    wrong = one.values != two.values
    count = np.append(0, np.cumsum(wrong.any(axis=tuple(range(1, wrong.ndim)))))
    assert one.offsets is not None
    same[picked] = count[one.offsets[1:]] == count[one.offsets[:-1]]
    return np.asarray(same)


def _unpacked(item: Any) -> Any:
    """Drop the ellipsis of ``array[..., 0]``; one axis is all there is."""
    if not isinstance(item, tuple):
        return item
    rest = [part for part in item if part is not Ellipsis]
    if len(rest) > 1:
        raise IndexError("too many indices for a tensor column")
    return rest[0] if rest else slice(None)


def _within(item: int, n: int) -> int:
    if not -n <= item < n:
        raise IndexError(f"index {item} is out of bounds for axis 0 with size {n}")
    return item % n


def _short(row: Any) -> str:
    if not isinstance(row, np.ndarray):
        return str(row)
    text = np.array2string(row, precision=4, threshold=6, edgeitems=2, separator=", ")
    return " ".join(text.split())
