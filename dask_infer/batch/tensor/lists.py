"""List-like columns as arrays, whatever holds the lists.

Tensor columns, Arrow lists, and object columns of arrays or lists. Messages name the
column, and the row by its index label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_infer.batch.tensor.arrow import arrow_row_shape, arrow_value_dtype, from_arrow
from dask_infer.batch.tensor.arrow import is_list as is_arrow_list
from dask_infer.batch.tensor.objects import from_objects
from dask_infer.batch.tensor.rows import Array, BadRow, Rows, Shape
from dask_infer.batch.tensor.tensor_array import TensorArray, TensorDtype
from dask_infer.errors import InputError


def to_dense(series: pd.Series[Any], shape: Shape | None = None) -> Array:
    """Stack the rows of a list-like column.

    Parameters
    ----------
    series
        Tensor dtype, Arrow lists, or an object column of arrays or lists.
    shape
        Shape of one row; flat rows of as many numbers are folded into it. A leading
        None leaves the first axis to the data.

    Returns
    -------
    ndarray
        ``(n, *shape)`` in the column's own dtype, NaN in missing rows; without a copy,
        and read-only, where the memory allows it.

    Raises
    ------
    InputError
        Where rows differ in length, do not fit `shape`, are missing in a column of
        integers or booleans, or are no numbers; names the column, the row, and what
        to do.
    """
    try:
        rows = _rows(series)
        return (rows if shape is None else rows.folded(shape)).filled()
    except BadRow as bad:
        raise _named(bad, series) from None


def to_ragged(series: pd.Series[Any]) -> Rows:
    """Join the rows of a list-like column end to end, each of its own length.

    Raises
    ------
    InputError
        Where a row is missing, or is no list of numbers.
    """
    try:
        rows = _rows(series)
        if rows.missing is not None:
            raise BadRow(
                "is missing, and a list of any length has no NaN; drop or fill the "
                "missing rows",
                int(rows.missing.argmax()),
            )
        return rows.ragged()
    except BadRow as bad:
        raise _named(bad, series) from None


def is_list(dtype: Any) -> bool:
    """Whether a pandas dtype says that rows are lists; object says nothing."""
    arrow = _arrow(dtype)
    return arrow is not None and is_arrow_list(arrow)


def row_shape(dtype: Any) -> Shape | None:
    """Shape of one row that a pandas dtype fixes; None where it fixes none."""
    if isinstance(dtype, TensorDtype):
        return dtype.shape
    arrow = _arrow(dtype)
    return None if arrow is None else arrow_row_shape(arrow)


def value_dtype(dtype: Any) -> np.dtype[Any] | None:
    """NumPy dtype of the numbers in a list column; None where its dtype hides it."""
    return arrow_value_dtype(_arrow(dtype)) if is_list(dtype) else None


def _arrow(dtype: Any) -> pa.DataType | None:
    if isinstance(dtype, TensorDtype):
        return dtype.arrow
    return dtype.pyarrow_dtype if isinstance(dtype, pd.ArrowDtype) else None


def _rows(series: pd.Series[Any]) -> Rows:
    array = series.array
    if isinstance(array, TensorArray):
        return array.rows
    if is_list(series.dtype):
        return from_arrow(array.__arrow_array__())
    if series.dtype == object or pd.api.types.is_string_dtype(series.dtype):
        # Text ends in the object reader too: it knows what to say about it.
        return from_objects(series.to_numpy(dtype=object))
    raise BadRow(f"holds {series.dtype}, not lists or arrays")


def _named(bad: BadRow, series: pd.Series[Any]) -> InputError:
    title = f'column "{series.name}"'
    if bad.position is None:
        return InputError(f"{title} {bad.reason}")
    return InputError(f"{title}: row {series.index[bad.position]} {bad.reason}")
