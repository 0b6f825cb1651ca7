"""Object columns of arrays or lists to rows.

Rows are listed, never converted one by one: arrays are joined by NumPy, lists are
read by Arrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_infer.batch.tensor.arrow import from_arrow
from dask_infer.batch.tensor.rows import Array, BadRow, Rows, offsets_of

TEXT = (
    "holds lists that were turned into text ({text!r}): Dask's setting "
    '"dataframe.convert-string" did it; run dask.config.set('
    '{{"dataframe.convert-string": False}}) before the dataframe is made, or keep '
    "the lists in Arrow columns"
)


def from_objects(values: Array) -> Rows:
    """Rows of a one-dimensional object array of arrays, lists or missing values.

    Raises
    ------
    BadRow
        Where a row is no array or list of numbers, or its inner shape differs.
    """
    missing = pd.isna(values)
    if missing.all():
        # No shape is known: rows without length.
        offsets = np.zeros(len(values) + 1, np.int64)
        return Rows(np.zeros(0), offsets, missing if len(values) else None)
    present = np.flatnonzero(~missing)
    try:
        rows = _stacked(values[present])
    except BadRow as bad:
        raise bad.moved(present) from None
    return rows.spread(missing) if missing.any() else rows


def _stacked(present: Array) -> Rows:
    first = present[0]
    if isinstance(first, np.ndarray):
        return _from_arrays(list(present))
    if isinstance(first, (list, tuple)):
        return _from_lists(list(present))
    if hasattr(first, "__array__"):
        return _from_arrays([_array(row, i) for i, row in enumerate(present)])
    raise _not_a_row(first, 0)


def _from_arrays(arrays: Sequence[Array]) -> Rows:
    try:
        values = np.concatenate(arrays)
    except (ValueError, TypeError):
        raise _misfit(arrays) from None
    lengths = np.fromiter(map(len, arrays), np.int64, len(arrays))
    if values.dtype == object:  # arrays of arrays, as Parquet readers give lists
        return _from_nested(arrays)
    if values.dtype.kind not in "biuf":
        raise BadRow(f"holds arrays of {values.dtype}; only numbers become tensors")
    if (lengths == lengths[0]).all():
        return Rows(values.reshape(len(arrays), lengths[0], *values.shape[1:]))
    return Rows(values, offsets_of(lengths))


def _from_nested(arrays: Sequence[Array]) -> Rows:
    try:
        return from_arrow(pa.array(arrays))
    except pa.ArrowException:
        reason = "holds arrays of objects; only numbers become tensors"
        raise BadRow(reason) from None


def _from_lists(lists: Sequence[Any]) -> Rows:
    try:
        return from_arrow(pa.array(lists))
    except pa.ArrowException:
        # Mixed numbers, or arrays of several axes inside: NumPy is slower but knows.
        return _from_arrays([_array(row, i) for i, row in enumerate(lists)])


def _array(row: object, position: int) -> Array:
    try:
        array = np.asarray(row)
    except ValueError:
        raise BadRow(
            "holds inner lists of different lengths; only whole rows may differ in "
            "length: pad the inner lists",
            position,
        ) from None
    if array.ndim == 0:
        raise _not_a_row(row, position)
    return array


def _misfit(arrays: Sequence[Any]) -> BadRow:
    """Name the first row that does not fit the first; only errors come here."""
    expected = arrays[0].shape[1:]
    for position, row in enumerate(arrays):
        if np.ndim(row) == 0:
            return _not_a_row(row, position)
        if np.shape(row)[1:] != expected:
            return BadRow(
                f"has shape {np.shape(row)} where the rows before it have "
                f"{arrays[0].shape}; bring the rows to one shape, in preprocess= say",
                position,
            )
    return BadRow("holds arrays that cannot be stacked")


def _not_a_row(value: object, position: int) -> BadRow:
    if isinstance(value, str) and value.lstrip().startswith("["):
        return BadRow(TEXT.format(text=_short(value)), position)
    if isinstance(value, str):
        return BadRow("holds text, not a list of numbers", position)
    kind = type(value).__name__
    return BadRow(f"holds a {kind}, not a list or an array of numbers", position)


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
