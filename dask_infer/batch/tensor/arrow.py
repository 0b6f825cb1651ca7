"""Arrow lists to rows and back, without a copy where Arrow and NumPy agree.

Booleans are packed in bits by Arrow, so they are copied; so are rows that are missing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dask_infer.batch.tensor.rows import (
    Array,
    BadRow,
    Rows,
    masked,
    offsets_of,
    row_mask,
)


def is_fixed(arrow: pa.DataType) -> bool:
    """Whether every list of the type is as long."""
    return bool(pa.types.is_fixed_size_list(arrow))


def is_list(arrow: pa.DataType) -> bool:
    """Whether the type is a list of any kind, or Arrow's own tensor type."""
    if isinstance(arrow, pa.FixedShapeTensorType):
        return True
    return bool(
        is_fixed(arrow) or pa.types.is_list(arrow) or pa.types.is_large_list(arrow)
    )


def arrow_row_shape(arrow: pa.DataType) -> tuple[int, ...] | None:
    """Shape of one row that the type fixes; None where it fixes none."""
    if isinstance(arrow, pa.FixedShapeTensorType):
        return tuple(arrow.shape)
    if not is_fixed(arrow):
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


def arrow_type(value: np.dtype[Any], shape: tuple[int | None, ...]) -> pa.DataType:
    """Nested lists, as any reader of Arrow expects them; fixed where `shape` is."""
    arrow = pa.from_numpy_dtype(value)
    for size in reversed(shape):
        # 64-bit offsets are NumPy's own, so ragged rows need no copy either.
        arrow = pa.large_list(arrow) if size is None else pa.list_(arrow, size)
    return arrow


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
    array = _one_chunk(array)
    if isinstance(array.type, pa.FixedShapeTensorType):
        rows = from_arrow(array.storage)
        return Rows(rows.values.reshape(-1, *array.type.shape), None, rows.missing)
    missing = _nulls(array)
    if is_fixed(array.type):
        values, holes = _inside(array)
        _refuse_holes(values, holes, missing)
        return masked(values, missing)
    lengths, child = _variable(array)
    values, holes = _owned(child, lengths)
    _refuse_holes(values, holes, missing, lengths)
    rows = Rows(values, offsets_of(lengths))
    if not missing.any():
        return rows
    return rows.take(np.where(missing, -1, np.arange(len(rows))))


def _elements(array: pa.Array) -> tuple[Array, Array | None]:
    """Values ``(n, *shape)`` of lists within lists, and which of them are null."""
    if not is_list(array.type):
        return _numbers(array)
    values, holes = (_inside if is_fixed(array.type) else _uniform)(array)
    if not array.null_count:
        return values, holes
    absent = np.broadcast_to(row_mask(_nulls(array), values), values.shape)
    if values.dtype.kind == "f":
        values = np.where(absent, values.dtype.type(np.nan), values)
    return values, absent if holes is None else absent | holes


def _inside(array: pa.Array) -> tuple[Array, Array | None]:
    """Contents of fixed-size lists; `values` ignores that the array is a slice."""
    size, n = array.type.list_size, len(array)
    child = array.values.slice(array.offset * size, n * size)
    return _folded(child, n, size)


def _uniform(array: pa.Array) -> tuple[Array, Array | None]:
    """Contents of variable lists that must turn out to be as long as each other."""
    lengths, child = _variable(array)
    size = int(lengths[0]) if len(lengths) else 0
    wrong = np.flatnonzero(lengths != size)
    if len(wrong):
        raise BadRow(
            f"holds an inner list of {lengths[wrong[0]]} values where those before it "
            f"hold {size}; only whole rows may differ in length: pad the inner lists",
            int(wrong[0]),
        )
    return _folded(child, len(array), size)


def _folded(child: pa.Array, n: int, size: int) -> tuple[Array, Array | None]:
    values, holes = _owned(child, np.full(n, size))
    shape = (n, size, *values.shape[1:])
    return values.reshape(shape), None if holes is None else holes.reshape(shape)


def _owned(child: pa.Array, lengths: Array) -> tuple[Array, Array | None]:
    """Contents of a child, whose complaints become those of the row it is in."""
    try:
        return _elements(child)
    except BadRow as bad:
        raise bad.moved(_owners(lengths)) from None


def _variable(array: pa.Array) -> tuple[Array, pa.Array]:
    offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    child = array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    return np.diff(offsets), child


def _numbers(array: pa.Array) -> tuple[Array, Array | None]:
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan), None
    if not _is_number(array.type):
        raise BadRow(f"holds lists of {array.type}; only numbers become tensors")
    holes = _nulls(array) if array.null_count else None
    if holes is not None and not pa.types.is_floating(array.type):
        array = pc.fill_null(array, pa.scalar(0).cast(array.type))
    return array.to_numpy(zero_copy_only=False), holes


def _refuse_holes(
    values: Array, holes: Array | None, missing: Array, lengths: Array | None = None
) -> None:
    """Complain of a null inside a row that is there, where the dtype has no NaN."""
    if holes is None or values.dtype.kind == "f":
        return
    owner = np.arange(len(missing)) if lengths is None else _owners(lengths)
    rows = owner[holes.reshape(len(holes), -1).any(axis=1)]
    rows = rows[~missing[rows]]
    if len(rows):
        raise BadRow(
            f"has a missing value inside, and {values.dtype} has no NaN; fill it, or "
            "make the column floating",
            int(rows[0]),
        )


def _is_number(arrow: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_integer(arrow) or types.is_floating(arrow) or types.is_boolean(arrow)
    )


def _owners(lengths: Array) -> Array:
    return np.repeat(np.arange(len(lengths)), lengths)


def _nulls(array: pa.Array) -> Array:
    if not array.null_count:
        return np.zeros(len(array), bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def _validity(rows: Rows) -> pa.Buffer | None:
    return None if rows.missing is None else pa.array(~rows.missing).buffers()[1]


def _one_chunk(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(array, pa.ChunkedArray):
        return array
    if array.num_chunks == 1:
        return array.chunk(0)
    return (
        pa.concat_arrays(array.chunks) if array.num_chunks else array.combine_chunks()
    )
