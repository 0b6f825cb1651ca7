"""One column's values, made a tensor batch by batch.

A column is looked at once a partition. Where that fails, for one bad row perhaps, it
is looked at again for each batch, so that only the batches that hold the row fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_infer.batch.inputs.column_types import (
    NUMBERS,
    ColumnType,
    content_of,
    is_missing,
    is_number,
)
from dask_infer.batch.inputs.frame_columns import STACKED, apart
from dask_infer.batch.inputs.list_columns import (
    check_lengths_known,
    check_same_length,
    holds_ids,
    open_ids,
    row_error,
    usual_shape,
)
from dask_infer.batch.tensor.integer_ranges import misfits
from dask_infer.batch.tensor.lists import row_shape, to_dense
from dask_infer.batch.tensor.rows import Array, Positions, Shape
from dask_infer.errors import InputError


class ColumnValues(Protocol):
    """The values of one column."""

    #: What they are; never "object".
    kind: ColumnType

    def plain(self, dtype: npt.DTypeLike) -> Array | None:
        """Return all values if a cast to `dtype` needs no checks, else None."""

    def take(self, positions: Positions, dtype: npt.DTypeLike | None) -> Array:
        """Return the values of a batch's rows; None keeps the column's own dtype."""


class ArrayColumn:
    """Values in one array: numbers, lists of one length, or what is no tensor's."""

    def __init__(
        self,
        series: pd.Series[Any],
        kind: ColumnType,
        values: Array,
        missing: Array | None = None,
    ) -> None:
        self.kind = kind
        self._series = series
        self._values = values
        self._missing = missing
        #: Shape of one row.
        self.shape = values.shape[1:]

    def plain(self, dtype: npt.DTypeLike) -> Array | None:
        """Return all values if a cast to `dtype` needs no checks, else None."""
        safe = self._missing is None and np.dtype(dtype).kind == "f"
        return self._values if safe else None

    def take(self, positions: Positions, dtype: npt.DTypeLike | None) -> Array:
        """Return the values of a batch's rows; None keeps the column's own dtype."""
        values = self._values[positions]
        target = values.dtype if dtype is None else np.dtype(dtype)
        if self._missing is not None or target.kind != "f":
            values = self._checked(values, positions, target)
        if values.dtype == target:
            # Rows that were picked one by one are a copy already.
            own = not isinstance(positions, slice)
            return np.ascontiguousarray(values) if own else np.array(values, order="C")
        # What is beyond a dtype's range is infinite, as in torch, without a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(target, order="C")

    def _checked(self, values: Array, positions: Positions, dtype: Any) -> Array:
        """Fill or refuse what is missing; refuse what integers cannot hold."""
        missing = None if self._missing is None else self._missing[positions]
        if dtype.kind == "f":
            blank = dtype.type(np.nan)
            return values if missing is None else np.where(missing, blank, values)
        if missing is None and values.ndim == 1 and values.dtype.kind == "f":
            missing = np.isnan(values)
        if missing is not None and missing.any():
            reason = (
                f"is missing, and the model reads {dtype.name} here, which has no NaN; "
                "drop or fill the missing rows, or cast the column to float"
            )
            raise row_error(self._series, positions, missing, reason)
        wrong = misfits(values, dtype)
        if wrong is not None:
            reason = f"holds {values[wrong][0]!s}, which is no {dtype.name}; cast it"
            rows = np.asarray(wrong.reshape(len(wrong), -1).any(axis=1))
            raise row_error(self._series, positions, rows, reason)
        return values


class TextColumn:
    """A column of text or bytes, one object a row."""

    def __init__(self, series: pd.Series[Any], kind: ColumnType = "text") -> None:
        self.kind = kind
        self._series = series
        self.values = series.to_numpy(dtype=object)
        self._wrong = self._not_of_kind()

    def plain(self, dtype: npt.DTypeLike) -> Array | None:
        """Return None: text is no tensor's."""

    def take(self, positions: Positions, dtype: npt.DTypeLike | None) -> Array:
        """Return the objects of a batch's rows."""
        values, wrong = self.values[positions], self._wrong[positions]
        if wrong.any():
            raise self._error(self._series.index[positions][wrong][0], values[wrong][0])
        return values.copy()

    def present(self) -> list[str]:
        """All texts; what is missing or no text is empty."""
        return list(np.where(self._wrong, "", self.values))

    def _not_of_kind(self) -> npt.NDArray[np.bool_]:
        missing = self._series.isna().to_numpy()
        if self._series.dtype != object or content_of(self._series) == self.kind:
            return missing
        kind = str if self.kind == "text" else bytes
        right = (isinstance(value, kind) for value in self.values)
        return ~np.fromiter(right, bool, count=len(self.values))

    def _error(self, label: object, value: object) -> InputError:
        name = self._series.name
        if is_missing(value):
            return InputError(
                f'column "{name}": row {label} is missing, which is no {self.kind}; '
                f'drop or fill the missing rows, ddf["{name}"].fillna("") say'
            )
        return InputError(
            f'column "{name}": row {label} holds {_short(value)}, which is no '
            f"{self.kind}; drop the row, or make {self.kind} of it in preprocess="
        )


class DeferredColumn:
    """A column that failed as a whole: every batch opens its own rows."""

    kind: ColumnType = "other"

    def __init__(
        self,
        series: pd.Series[Any],
        open_rows: Callable[[pd.Series[Any]], ColumnValues],
        integers: bool = False,
    ) -> None:
        self._series = series
        self._open_rows = open_rows
        self._integers = integers

    def plain(self, dtype: npt.DTypeLike) -> Array | None:
        """Return None: each batch has to be checked."""

    def take(self, positions: Positions, dtype: npt.DTypeLike | None) -> Array:
        """Open the rows of a batch and return their values."""
        rows = self._series.iloc[positions]
        if self._integers and rows.isna().any():
            open_ids(rows)
        return self._open_rows(rows).take(slice(None), dtype)


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
        They are stacked with other columns: refuse lists.
    """
    known = shape is not None and None not in shape
    fits = known or stacked or row_shape(series.dtype) is not None

    def opened(part: pd.Series[Any], shape: Shape | None) -> ColumnValues:
        if not fits:
            check_lengths_known(part)
            check_same_length(part, shape)
        return _open(part, shape, tensor, stacked)

    try:
        return opened(series, shape)
    except InputError:
        usual = shape or usual_shape(series)
        # A batch of missing rows alone would not show that they are integers.
        whole = holds_ids(series)
        return DeferredColumn(series, lambda part: opened(part, usual), whole)


def _open(
    series: pd.Series[Any], shape: Shape | None, tensor: bool, stacked: bool
) -> ColumnValues:
    kind = content_of(series)
    if kind == "list" and stacked:
        raise InputError(
            f'column "{series.name}" holds lists, and {STACKED}; {apart(series.name)}'
        )
    if kind == "list" or (shape and kind == "floating" and series.isna().all()):
        lists = to_dense(series, None if shape == (None,) else shape)
        return ArrayColumn(series, "list", lists)
    if kind in NUMBERS:
        return ArrayColumn(series, kind, *_numbers(series, kind))
    if tensor:
        raise _no_tensor(series, kind)
    if kind in ("text", "bytes"):
        return TextColumn(series, kind)
    return ArrayColumn(series, "other", np.asarray(series))


def _numbers(series: pd.Series[Any], kind: ColumnType) -> tuple[Array, Array | None]:
    """Values without a copy where NumPy can hold them, and which are missing.

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
    return row_error(
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
        if not is_number(value):
            return InputError(
                f'column "{series.name}": row {label} holds {_short(value)}, which is '
                f"no number; leave it out of columns= or pass {remedy}"
            )
    return InputError(
        f'column "{series.name}" holds {series.dtype}, which cannot become a tensor; '
        "leave it out of columns= or pass preprocess= to make numbers of it"
    )


def _short(value: object, most: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
