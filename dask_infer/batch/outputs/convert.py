"""What a model returned, as NumPy arrays of the promised dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from dask_infer.batch.outputs.column_dtypes import dtype_name
from dask_infer.batch.tensor.rows import Array
from dask_infer.batch.tensor.tensor_array import TensorDtype
from dask_infer.errors import OutputError
from dask_infer.spec import OutputColumn


def is_array(value: Any) -> bool:
    """Whether `value` is an array of NumPy or torch, or a sparse one."""
    is_sparse = hasattr(value, "toarray")  # of SciPy
    return is_sparse or isinstance(value, np.ndarray) or torch.is_tensor(value)


def to_array(value: Any) -> Array:
    """Return a tensor, list or array of any library as NumPy, copied only if it must.

    Floats that NumPy lacks become float32.
    """
    if isinstance(value, np.ndarray):
        return value
    if torch.is_tensor(value):
        return _tensor_to_array(value)
    if hasattr(value, "toarray"):
        return np.asarray(value.toarray())
    if isinstance(value, list) and value and torch.is_tensor(value[0]):
        value = [_tensor_to_array(row) for row in value]
    try:
        if isinstance(getattr(value, "dtype", None), TensorDtype):
            value = getattr(value, "array", value).to_dense()
        return np.asarray(value)
    except ValueError as error:
        raise OutputError(
            "the model returned rows of different lengths; pad them, or declare a list "
            'column by meta={"name": "object"}'
        ) from error


def _tensor_to_array(tensor: torch.Tensor) -> Array:
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.to(getattr(torch, dtype_name(tensor.dtype))).numpy(force=True)


def owned(value: Any) -> Any:
    """Return a row's value in memory of its own, tensors as NumPy arrays.

    Containers are built anew: a model may fill the same ones again.
    """
    if torch.is_tensor(value):
        return np.array(_tensor_to_array(value))
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is dict:
        return {key: owned(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(owned, value))
    return value


def numbers(
    value: Any, column: OutputColumn, dtype: np.dtype[Any]
) -> tuple[Array, Array | None]:
    """Return numbers, and which rows are missing where any is."""
    if type(value) is np.ndarray and value.dtype != object:
        return value, None
    if torch.is_tensor(value):
        return _tensor_to_array(value), None
    missing = _missing_rows(value)
    if missing is None or not missing.any():
        return unboxed(to_array(value)), None
    if isinstance(value, list):
        present: Any = [row for row, no in zip(value, missing, strict=True) if not no]
    elif isinstance(value, pa.Array | pa.ChunkedArray):
        present = value.drop_null()
    else:
        present = value[~missing]
    shape = tuple(size or 0 for size in column.shape)
    found = np.zeros((0, *shape), dtype)
    if len(present):
        found = unboxed(to_array(present))
    array = np.zeros((len(missing), *found.shape[1:]), found.dtype)
    array[~missing] = found
    return array, missing


def _missing_rows(value: Any) -> Array | None:
    """Return which rows of what is no tensor are missing; NaN is a number."""
    if isinstance(value, list):
        return np.array([row is None or row is pd.NA for row in value], bool)
    if isinstance(value, pa.Array | pa.ChunkedArray):
        return np.asarray(value.is_null())
    dtype = getattr(value, "dtype", None)
    objects = getattr(dtype, "kind", None) == "O" and np.ndim(value) == 1
    if objects or isinstance(dtype, pd.api.extensions.ExtensionDtype):
        return np.asarray(pd.isna(value))
    return None


def unboxed(array: Array) -> Array:
    """Return numbers that were Python objects, or arrays of them, as one array."""
    if array.dtype != object:
        return array
    return to_array(array.tolist())


def one_per_row(
    array: Array, column: OutputColumn, shape: tuple[int, ...], count: int
) -> Array:
    """Return an array that is not ``(count, *shape)`` in that form, if it has another.

    One row may come without its axis, where the model squeezes: what has exactly the
    shape of a row is that row.
    """
    squeezed = count == 1 and array.shape == shape
    if squeezed or (shape == () and array.shape == (count, 1)):
        return array.reshape(count, *shape)
    check_rows(array, count)
    raise broken_promise(column, f"rows of shape {array.shape[1:]}", array)


def check_rows(value: Any, count: int) -> None:
    """Raise `OutputError` unless `value` has as many rows as the model was given."""
    shape = getattr(value, "shape", None)  # `len` of a sparse matrix raises
    if shape == ():
        found = "one value without rows"
    else:
        found = f"{len(value) if shape is None else shape[0]} rows"
    if found != f"{count} rows":
        raise OutputError(
            f"the model returned {found} for a batch of {count} rows; it must return "
            "one row for each that it is given, see to it in the model or in "
            "postprocess= (a list has a row an entry, a tuple a column)"
        )


def cast_array(
    array: Array, dtype: np.dtype[Any], column: OutputColumn, cast: bool
) -> Array:
    """Return the array in the promised dtype, if that keeps its meaning."""
    if array.dtype == dtype:
        return array
    if not cast or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise broken_promise(column, f"values of {dtype_name(array.dtype)}", array)
    result = array.astype(dtype)
    if dtype.kind in "iu" and array.dtype.kind in "iu" and (result != array).any():
        error = broken_promise(column, "values that do not fit", array)
        error.of_a_row = True  # all else is as promised
        raise error
    return result


def broken_promise(column: OutputColumn, found: str, array: Any) -> OutputError:
    """Return what was promised, what came, and the ``meta=`` for it."""
    promised = column.dtype
    if column.shape:
        promised = f"{promised} in rows of shape {column.shape}"
    found_dtype = dtype_name(array.dtype)
    shape: tuple[int | None, ...] = tuple(array.shape[1:])
    if shape and column.shape[:1] == (None,):
        shape = (None, *shape[1:])
    if shape and shape != (1,) and found_dtype not in ("object", "string"):
        found_dtype = f"tensor[{found_dtype}, {shape}]"
    return OutputError(
        f'output column "{column.name}" is promised as {promised}, the model returned '
        f'{found}; if that is meant, pass meta={{"{column.name}": "{found_dtype}"}}'
    )
