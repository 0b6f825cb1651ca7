"""One column's values on the way to a tensor, batch by batch.

A column is looked at once a partition. Where that fails, for one bad row perhaps, it
is looked at again for each batch, so that only the batches that hold the row fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import infer_dtype

from dask_infer.batch.inputs.column_types import NUMBERS, ColumnType, column_type_of
from dask_infer.batch.inputs.integer_ranges import misfits
from dask_infer.batch.inputs.resolve_inputs import STACKED, apart
from dask_infer.batch.tensor.lists import row_shape, to_dense, to_ragged
from dask_infer.batch.text.tokenize import Ragged
from dask_infer.errors import InputError

Array = npt.NDArray[Any]
Rows = slice | npt.NDArray[np.int64]
Shape = tuple[int | None, ...]

#: What pandas infers of objects, in our words.
_INFERRED: dict[str, ColumnType] = {
    "floating": "floating",
    "mixed-integer-float": "floating",
    "decimal": "floating",
    "empty": "floating",
    "integer": "integer",
    "boolean": "bool",
    "string": "text",
    "bytes": "bytes",
}

_LISTS = (list, tuple, np.ndarray)


class ColumnValues(Protocol):
    """The values of one column."""

    #: What they are; never "object".
    kind: ColumnType

    def take(self, rows: Rows, dtype: npt.DTypeLike | None) -> Array:
        """Return the values of `rows` in memory of their own; None keeps the dtype."""


class NumberColumn:
    """A column of numbers, one a row."""

    def __init__(self, series: pd.Series[Any], kind: ColumnType) -> None:
        self.kind = kind
        self._series = series
        self.values, self._missing = _numbers(series, kind)
        #: Shape of one row.
        self.shape = ()

    def plain(self, dtype: npt.DTypeLike) -> Array | None:
        """Return the values if they can be cast to `dtype` unseen, else None."""
        safe = self._missing is None and np.dtype(dtype).kind == "f"
        return self.values if safe else None

    def take(self, rows: Rows, dtype: npt.DTypeLike | None) -> Array:
        """Return the values of `rows` in memory of their own; None keeps the dtype."""
        values = self.values[rows]
        target = values.dtype if dtype is None else np.dtype(dtype)
        if self._missing is not None or target.kind in "ib":
            values = self._checked(values, rows, target)
        return _owned(values, rows, target)

    def _checked(self, values: Array, rows: Rows, dtype: np.dtype[Any]) -> Array:
        """Fill or refuse what is missing; refuse what integers cannot hold."""
        missing = None if self._missing is None else self._missing[rows]
        if dtype.kind == "f":
            blank = dtype.type(np.nan)
            return values if missing is None else np.where(missing, blank, values)
        if missing is None and values.dtype.kind == "f":
            missing = np.isnan(values)
        if missing is not None and missing.any():
            raise self._error(
                rows,
                missing,
                f"is missing, and the model reads {dtype.name} here, which has no NaN; "
                "drop or fill the missing rows, or cast the column to float",
            )
        _refuse_misfits(self._series, rows, values, dtype)
        return values

    def _error(self, rows: Rows, wrong: Array, reason: str) -> InputError:
        return _at(self._series, rows, wrong, reason)


class Lists:
    """A column of equally long lists, one array a row."""

    kind: ColumnType = "list"

    def __init__(self, series: pd.Series[Any], shape: Shape | None) -> None:
        told = None if shape == (None,) else shape
        self._series = series
        self.values = to_dense(series, told)
        #: Shape of one row.
        self.shape = self.values.shape[1:]

    def take(self, rows: Rows, dtype: npt.DTypeLike | None) -> Array:
        """Return the rows in memory of their own; None keeps the dtype."""
        values = self.values[rows]
        if dtype is not None:
            _refuse_misfits(self._series, rows, values, np.dtype(dtype))
        return _owned(values, rows, dtype)


def _refuse_misfits(
    series: pd.Series[Any], rows: Rows, values: Array, dtype: np.dtype[Any]
) -> None:
    """Name the first row of `series` that `dtype` cannot hold."""
    wrong = misfits(values, dtype)
    if wrong is not None:
        reason = f"holds {values[wrong][0]!s}, which is no {dtype.name}; cast it"
        rowwise = np.asarray(wrong.reshape(len(wrong), -1).any(axis=1))
        raise _at(series, rows, rowwise, reason)


def _at(series: pd.Series[Any], rows: Rows, wrong: Array, reason: str) -> InputError:
    label = series.index[rows][wrong][0]
    return InputError(f'column "{series.name}": row {label} {reason}')


def _owned(values: Array, rows: Rows, dtype: npt.DTypeLike | None) -> Array:
    """Copy, unless picking rows one by one did so already."""
    if isinstance(rows, slice):
        return np.array(values, dtype=dtype, order="C")
    return np.ascontiguousarray(values, dtype=dtype)


class TextColumn:
    """A column of text or bytes, one object a row."""

    def __init__(self, series: pd.Series[Any], kind: ColumnType = "text") -> None:
        self.kind = kind
        self._series = series
        self.values = series.to_numpy(dtype=object)
        self._wrong = self._not_of_kind()

    def take(self, rows: Rows, dtype: npt.DTypeLike | None) -> Array:
        """Return the objects of `rows`."""
        values, wrong = self.values[rows], self._wrong[rows]
        if wrong.any():
            raise self._error(self._series.index[rows][wrong][0], values[wrong][0])
        return values.copy()

    def present(self) -> list[str]:
        """All texts; what is missing or no text is empty."""
        return list(np.where(self._wrong, "", self.values))

    def _not_of_kind(self) -> npt.NDArray[np.bool_]:
        missing = self._series.isna().to_numpy()
        if self._series.dtype != object or _content(self._series) == self.kind:
            return missing
        kind = str if self.kind == "text" else bytes
        right = (isinstance(value, kind) for value in self.values)
        return ~np.fromiter(right, bool, count=len(self.values))

    def _error(self, label: object, value: object) -> InputError:
        name = self._series.name
        if _is_missing(value):
            return InputError(
                f'column "{name}": row {label} is missing, which is no {self.kind}; '
                f'drop or fill the missing rows, ddf["{name}"].fillna("") say'
            )
        return InputError(
            f'column "{name}": row {label} holds {_short(value)}, which is no '
            f"{self.kind}; drop the row, or make {self.kind} of it in preprocess="
        )


class Dates:
    """A column of a dtype that is no tensor's, as NumPy sees it."""

    kind: ColumnType = "other"

    def __init__(self, series: pd.Series[Any]) -> None:
        self.values = np.asarray(series)

    def take(self, rows: Rows, dtype: npt.DTypeLike | None) -> Array:
        """Return the values of `rows`."""
        return np.array(self.values[rows], dtype=dtype)


class DeferredColumn:
    """A column that failed as a whole: every batch opens its own rows."""

    kind: ColumnType = "other"

    def __init__(
        self,
        series: pd.Series[Any],
        open_: Callable[[pd.Series[Any]], ColumnValues],
        integers: bool = False,
    ) -> None:
        self._series = series
        self._open = open_
        self._integers = integers

    def take(self, rows: Rows, dtype: npt.DTypeLike | None) -> Array:
        """Open `rows` and return their values."""
        part = self._series.iloc[rows]
        if self._integers and part.isna().any():
            open_ragged(part)
        return self._open(part).take(slice(None), dtype)


def open_column(
    series: pd.Series[Any],
    shape: Shape | None = None,
    *,
    tensor: bool = True,
    stacked: bool = False,
) -> ColumnValues:
    """Return the values of a column, whatever holds them.

    Parameters
    ----------
    series
        One column of a partition.
    shape
        Shape of one row of lists, where it is known.
    tensor
        They must become numbers: refuse dates and the like.
    stacked
        They stand beside other columns: refuse lists.
    """
    known = shape is not None and None not in shape
    fits = known or stacked or row_shape(series.dtype) is not None

    def opened(part: pd.Series[Any], shape: Shape | None) -> ColumnValues:
        if not fits:
            _refuse_unknown(part)
            _refuse_unequal(part, shape)
        return _open(part, shape, tensor, stacked)

    try:
        return opened(series, shape)
    except InputError:
        usual = shape or usual_shape(series)
        # A batch of missing rows alone would not tell that they are integers.
        whole = holds_ids(series)
        return DeferredColumn(series, lambda part: opened(part, usual), whole)


def _refuse_unknown(series: pd.Series[Any]) -> None:
    """Name a missing row of which nothing tells whether a list is missing, or how long.

    What other rows of the partition tell must not matter, for they may be elsewhere.
    """
    if column_type_of(series.dtype) not in ("list", "object"):
        return
    missing = series.isna().to_numpy()
    if not missing.any():
        return
    lists = _content(series) == "list"
    if lists or (series.dtype == object and missing.all()):
        what = "how long it is" if lists else "what the column holds"
        reason = f"is missing, and nothing tells {what}; drop the missing rows, "
        advice = "or pass shapes=" if lists else "or give the column a dtype"
        raise _at(series, slice(None), missing, reason + advice)


def _refuse_unequal(series: pd.Series[Any], usual: Shape | None) -> None:
    """Name the first row that is not as long as most of its partition's are."""
    if usual is None or None in usual or _content(series) != "list":
        return
    lengths = np.diff(to_ragged(series)[1])
    wrong = lengths != usual[0]
    if wrong.any():
        reason = (
            f"holds {lengths[wrong][0]} values where most hold {usual[0]}, and the "
            "model takes no attention_mask; pad or cut the lists in preprocess="
        )
        raise _at(series, slice(None), wrong, reason)


def open_ragged(series: pd.Series[Any], fill: int = 0) -> Ragged:
    """Return the rows of a column of integer lists of any length, padded with `fill`.

    Raises
    ------
    InputError
        Where a row is missing, is no flat list of integers, or holds one that int64
        cannot.
    """
    ragged = replace(_ragged(series), fill=fill)
    wrong = misfits(ragged.flat, np.dtype(np.int64))
    if wrong is not None:
        label = series.index[np.repeat(np.arange(len(series)), ragged.lengths)][wrong][
            0
        ]
        reason = f"holds {ragged.flat[wrong][0]!s}, which is no int64; cast it"
        raise InputError(f'column "{series.name}": row {label} {reason}')
    return ragged


def holds_ids(series: pd.Series[Any]) -> bool:
    """Whether a column holds flat lists of integers where no row is missing."""
    if _content(series) != "list":
        return False
    try:
        _ragged(series[series.notna().to_numpy()])
    except InputError:
        return False
    return True


def _ragged(series: pd.Series[Any]) -> Ragged:
    flat, offsets = to_ragged(series)
    if flat.ndim != 1 or (flat.dtype.kind not in "iu" and len(flat)):
        raise InputError(
            f'column "{series.name}" holds lists of {flat.dtype}, not of integers'
        )
    return Ragged(flat, offsets)


def usual_shape(series: pd.Series[Any]) -> Shape | None:
    """Shape that most rows of a list column have, against which the others stand."""
    found = _present(series)
    if found is None or len(found[1]) < 2:
        return None
    flat, lengths = found[0], np.diff(found[1])
    _, first, counts = np.unique(lengths, return_index=True, return_counts=True)
    # Of equally many, those that come first.
    usual = first[counts == counts.max()].min()
    return (int(lengths[usual]), *flat.shape[1:])


def lengths_of(series: pd.Series[Any]) -> Array | None:
    """Return the length of each list that is present; None of other columns."""
    found = _present(series)
    return None if found is None else np.diff(found[1])


def _present(series: pd.Series[Any]) -> tuple[Array, Array] | None:
    """Return the lists that are present, end to end; None of other columns."""
    if _content(series) != "list":
        return None
    try:
        return to_ragged(series[series.notna().to_numpy()])
    except InputError:
        return None


def _content(series: pd.Series[Any]) -> ColumnType:
    """Tell what a column holds; looks at values where the dtype is object."""
    kind = column_type_of(series.dtype)
    if kind != "object":
        return kind
    inferred = infer_dtype(series, skipna=True)
    if inferred in _INFERRED:
        return _INFERRED[inferred]
    present = (value for value in series if not _is_missing(value))
    if isinstance(next(present, None), _LISTS):
        return "list"
    return "floating" if all(map(_is_number, series)) else "other"


def _open(
    series: pd.Series[Any], shape: Shape | None, tensor: bool, stacked: bool
) -> ColumnValues:
    kind = _content(series)
    if kind == "list" and stacked:
        raise InputError(
            f'column "{series.name}" holds lists, and {STACKED}; {apart(series.name)}'
        )
    if kind == "list" or (shape and kind == "floating" and series.isna().all()):
        return Lists(series, shape)
    if kind in NUMBERS:
        return NumberColumn(series, kind)
    if tensor:
        raise _no_tensor(series, kind)
    if kind in ("text", "bytes"):
        return TextColumn(series, kind)
    return Dates(series)


def _numbers(series: pd.Series[Any], kind: ColumnType) -> tuple[Array, Array | None]:
    """ColumnValues without a copy where NumPy can hold them, and which are missing.

    Missing floating values are NaN already.
    """
    if isinstance(series.dtype, np.dtype) and series.dtype != object:
        return series.to_numpy(), None
    if kind == "floating":
        return series.to_numpy(
            dtype=floating_dtype(series.dtype), na_value=np.nan
        ), None
    missing = series.isna().to_numpy()
    dtype, blank = (bool, False) if kind == "bool" else (_integer(series.dtype), 0)
    try:
        if not missing.any():
            return series.to_numpy(dtype=dtype), None
        return series.to_numpy(dtype=dtype, na_value=blank), missing
    except OverflowError:  # objects are integers of any size
        raise _too_large(series) from None


def floating_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the NumPy dtype of floating values of a nullable or Arrow dtype."""
    own = getattr(dtype, "numpy_dtype", None)
    floating = isinstance(own, np.dtype) and own.kind == "f"
    return np.dtype(own if floating else np.float64)


def _integer(dtype: Any) -> np.dtype[Any]:
    own = getattr(dtype, "numpy_dtype", None)
    whole = isinstance(own, np.dtype) and own.kind in "iu"
    return np.dtype(own if whole else np.int64)


def _too_large(series: pd.Series[Any]) -> InputError:
    low, high = -(2**63), 2**63 - 1
    present = series[series.notna().to_numpy()]
    wrong = [not low <= value <= high for value in present]
    reason = "holds {}, which is no int64; cast it, or the column to float"
    return _at(
        present, slice(None), np.array(wrong), reason.format(present[wrong].iloc[0])
    )


def _no_tensor(series: pd.Series[Any], kind: ColumnType) -> InputError:
    """Name the first value that is no number; only errors come here."""
    if kind == "text" and series.dtype != object:
        return InputError(
            f'column "{series.name}" holds text; leave it out of columns= or pass '
            "tokenizer="
        )
    remedy = "tokenizer=" if kind == "text" else "preprocess= to make numbers of it"
    for label, value in series.items():
        if not _is_number(value):
            return InputError(
                f'column "{series.name}": row {label} holds {_short(value)}, which is '
                f"no number; leave it out of columns= or pass {remedy}"
            )
    return InputError(
        f'column "{series.name}" holds {series.dtype}, which cannot become a tensor; '
        "leave it out of columns= or pass preprocess= to make numbers of it"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number | Decimal) or _is_missing(value)


def _is_missing(value: object) -> bool:
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))  # type: ignore[call-overload]


def _short(value: object, most: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
