"""One column's values, made a tensor batch by batch.

A column is looked at once a partition. Where that fails, for one bad row perhaps, it
is looked at again for each batch, so that only the batches that hold the row fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    check_lengths,
    holds_ids,
    open_ids,
    row_error,
    usual_shape,
)
from dask_infer.batch.tensor.integer_ranges import misfits
from dask_infer.batch.tensor.lists import row_shape, to_dense
from dask_infer.batch.tensor.rows import Array, Positions, Shape
from dask_infer.errors import InputError


class ColumnValues:
    """The values of one column."""

    #: What they are; never "object".
    kind: ColumnType
    #: All of them, where a cast to floats needs no look at them.
    floats: Array | None = None

    def take(self, positions: Positions, dtype: npt.DTypeLike | None) -> Array:
        """Return the values of a batch's rows; None keeps the column's own dtype."""
        raise NotImplementedError


class ArrayColumn(ColumnValues):
    """Values in one array: numbers, lists of one length, or what is no tensor's."""

    def __init__(
        self,
        series: pd.Series[Any],
        kind: ColumnType,
        values: Array,
        missing: Array | None = None,
    ) -> None:
        self.kind = kind
        self.floats = values if missing is None else None
        self._series = series
        self._values = values
        self._missing = missing
        #: Shape of one row.
        self.shape = values.shape[1:]

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


class TextColumn(ColumnValues):
    """A column of text or bytes, one object a row."""

    #: How much a row holds is not known.
    shape = (None,)

    def __init__(self, series: pd.Series[Any], kind: ColumnType = "text") -> None:
        self.kind = kind
        self._series = series
        self._values = series.to_numpy(dtype=object)
        self._wrong = self._not_of_kind()

    def take(self, positions: Positions, dtype: npt.DTypeLike | None) -> Array:
        """Return the objects of a batch's rows."""
        values, wrong = self._values[positions], self._wrong[positions]
        if wrong.any():
            value = values[wrong][0]
            reason = (
                f"holds {_short(value)}, which is no {self.kind}; drop the row, or "
                f"make {self.kind} of it in preprocess="
            )
            if is_missing(value):
                reason = (
                    f"is missing, which is no {self.kind}; drop or fill the missing "
                    f'rows, ddf["{self._series.name}"].fillna("") say'
                )
            raise row_error(self._series, positions, wrong, reason)
        return values.copy()

    def present(self) -> list[str]:
        """All texts; what is missing or no text is empty."""
        return list(np.where(self._wrong, "", self._values))

    def _not_of_kind(self) -> Array:
        if self._series.dtype != object or content_of(self._series) == self.kind:
            return self._series.isna().to_numpy()
        kind = str if self.kind == "text" else bytes
        return np.array([not isinstance(value, kind) for value in self._values], bool)


class DeferredColumn(ColumnValues):
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
    known = _is_known(shape)
    fits = known or stacked or _is_known(row_shape(series.dtype))

    def opened(part: pd.Series[Any], shape: Shape | None) -> ColumnValues:
        if not fits:
            check_lengths(part, shape)
        return _open(part, shape, tensor, stacked)

    try:
        return opened(series, shape)
    except InputError:
        usual = shape if known else usual_shape(series)
        # A batch of missing rows alone would not show that they are integers.
        whole = holds_ids(series)
        return DeferredColumn(series, lambda part: opened(part, usual), whole)


def _is_known(shape: Shape | None) -> bool:
    return shape is not None and None not in shape


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
        floats = numpy_dtype(series.dtype, "f", np.float64)
        return series.to_numpy(dtype=floats, na_value=np.nan), None
    missing = series.isna().to_numpy()
    dtype: Any = bool
    if kind == "integer":
        dtype = numpy_dtype(series.dtype, "iu", np.int64).type
    try:
        if not missing.any():
            return series.to_numpy(dtype=dtype), None
        return series.to_numpy(dtype=dtype, na_value=dtype(0)), missing
    except OverflowError:  # objects are integers of any size
        raise _too_large(series) from None


def numpy_dtype(dtype: Any, kinds: str, default: type[np.generic]) -> np.dtype[Any]:
    """Return the NumPy dtype behind a nullable or Arrow dtype, if it is of `kinds`."""
    own = getattr(dtype, "numpy_dtype", None)
    return np.dtype(own if isinstance(own, np.dtype) and own.kind in kinds else default)


def _too_large(series: pd.Series[Any]) -> InputError:
    present = series[series.notna().to_numpy()]
    wrong = np.array([not -(2**63) <= value < 2**63 for value in present])
    value = present[wrong].iloc[0]
    reason = f"holds {value}, which is no int64; cast it, or the column to float"
    return row_error(present, slice(None), wrong, reason)


def _no_tensor(series: pd.Series[Any], kind: ColumnType) -> InputError:
    """Name the first value that is no number; only errors come here."""
    remedy = "tokenizer=" if kind == "text" else "preprocess= to make numbers of it"
    what = f'column "{series.name}" holds {series.dtype}, which cannot become a tensor'
    for label, value in series.items():
        if not is_number(value):
            what = (
                f'column "{series.name}": row {label} holds {_short(value)}, which is '
                "no number"
            )
            break
    return InputError(f"{what}; leave it out of columns= or pass {remedy}")


def _short(value: object, most: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
