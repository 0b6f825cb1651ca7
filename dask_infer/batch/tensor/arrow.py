"""Arrow lists to rows and back, without a copy where Arrow and NumPy agree.

Booleans are packed in bits by Arrow, so they are copied; so are rows that are missing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dask_infer.batch.tensor.rows import Array, BadRow, Rows, offsets_of

UNEVEN = (
    "holds an inner list of {} values where those before it hold {}; only whole rows "
    "may differ in length: pad the inner lists"
)


def is_list(arrow: pa.DataType) -> bool:
    """Whether the type is a list of any kind, or Arrow's own tensor type."""
    if isinstance(arrow, pa.FixedShapeTensorType):
        return True
    types = pa.types
    kinds = (types.is_fixed_size_list, types.is_list, types.is_large_list)
    return any(is_kind(arrow) for is_kind in kinds)


def arrow_row_shape(arrow: pa.DataType) -> tuple[int, ...] | None:
    """Shape of one row that the type fixes; None where it fixes none."""
    if isinstance(arrow, pa.FixedShapeTensorType):
        return tuple(arrow.shape)
    if not pa.types.is_fixed_size_list(arrow):
        return None
    if not is_list(arrow.value_type):
        return (arrow.list_size,)
    inner = arrow_row_shape(arrow.value_type)
    return None if inner is None else (arrow.list_size, *inner)


def arrow_value_dtype(arrow: pa.DataType) -> np.dtype[Any] | None:
    """NumPy dtype of the numbers in the lists; None where they are none."""
    while is_list(arrow):
        arrow = arrow.value_type
    return np.dtype(arrow.to_pandas_dtype()) if _is_number(arrow) else None


def to_arrow(rows: Rows) -> pa.Array:
    """Build the array of lists that holds the rows."""
    values = np.ascontiguousarray(rows.values)
    inner = values.shape[1:]
    child = pa.array(values.reshape(-1))
    for depth in range(len(inner), 0, -1):
        kind = pa.list_(child.type, inner[depth - 1])
        count = math.prod(values.shape[:depth])
        top = depth == 1 and rows.offsets is None
        valid = _validity(rows) if top else None
        child = pa.Array.from_buffers(kind, count, [valid], children=[child])
    if rows.offsets is None:
        return child
    buffers = [_validity(rows), pa.py_buffer(np.ascontiguousarray(rows.offsets))]
    kind = pa.large_list(child.type)
    return pa.Array.from_buffers(kind, len(rows), buffers, children=[child])


def from_arrow(array: pa.Array | pa.ChunkedArray) -> Rows:
    """Rows of an array of lists; ragged where its type does not fix their length.

    Raises
    ------
    BadRow
        Where lists within lists differ in length, an integer is missing inside a
        row, or the lists hold no numbers.
    """
    if isinstance(array, pa.ChunkedArray):
        whole = array.num_chunks == 1  # else it would be copied
        array = array.chunk(0) if whole else array.combine_chunks()
    if isinstance(array.type, pa.FixedShapeTensorType):
        rows = from_arrow(array.storage)
        return Rows(rows.values.reshape(-1, *array.type.shape), None, rows.missing)
    missing = _nulls(array)
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    try:
        inner = _elements(array.flatten())  # of the lists that are there
        if inner.missing is not None and inner.values.dtype.kind != "f":
            raise BadRow(
                f"has a missing value inside, and {inner.values.dtype} has no NaN; "
                "fill it, or make the column floating",
                int(inner.missing.argmax()),
            )
    except BadRow as bad:
        raise bad.moved(np.repeat(np.arange(len(array)), lengths)) from None
    if not pa.types.is_fixed_size_list(array.type):
        return Rows(inner.values, offsets_of(lengths), missing)
    shape = (len(array) - array.null_count, array.type.list_size)
    rows = Rows(inner.values.reshape(*shape, *inner.values.shape[1:]))
    return rows if missing is None else rows.spread(missing)


def _elements(array: pa.Array) -> Rows:
    """Return what lists hold as dense rows: lists in their turn, or numbers."""
    if is_list(array.type):
        return from_arrow(array).dense(UNEVEN)
    if pa.types.is_null(array.type):
        return Rows(np.full(len(array), np.nan))
    if not _is_number(array.type):
        raise BadRow(f"holds lists of {array.type}; only numbers become tensors")
    missing = _nulls(array)
    if missing is not None and not pa.types.is_floating(array.type):
        array = pc.fill_null(array, pa.scalar(0).cast(array.type))
    return Rows(array.to_numpy(zero_copy_only=False), None, missing)


def _is_number(arrow: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(arrow) or types.is_floating(arrow) or types.is_boolean(arrow)
    )


def _nulls(array: pa.Array) -> Array | None:
    if not array.null_count:
        return None
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def _validity(rows: Rows) -> pa.Buffer | None:
    return None if rows.missing is None else pa.array(~rows.missing).buffers()[1]
