"""One output column while batches come in: where their values are written.

One writer for each kind of column, which `build_writer` chooses by the column's dtype:

- `NumberWriter`: numbers, and arrays of one shape, in one block;
- `RaggedWriter`: lists of different lengths, in parts;
- `TextWriter`, `ObjectWriter`: references to strings, and to other objects;
- `ExtensionWriter`: dtypes that only pandas has, in parts.

Tensors and arrays of every library are converted by `convert.to_array` first.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from dask_infer.batch.outputs.column_dtypes import STRING, dtype_name, pandas_dtype
from dask_infer.batch.outputs.convert import (
    broken_promise,
    cast_array,
    check_rows,
    is_array,
    numbers,
    one_per_row,
    owned,
    to_array,
)
from dask_infer.batch.tensor.rows import Array, Positions, Rows, offsets_of
from dask_infer.batch.tensor.tensor_array import TensorArray, TensorDtype
from dask_infer.batch.text.batch_padding import NOT_PADDED, Padding
from dask_infer.errors import OutputError
from dask_infer.spec import OutputColumn

Columns: TypeAlias = dict[str, Any]

#: Array types of pandas that keep a mask beside NumPy values.
MASKED = (pd.arrays.IntegerArray, pd.arrays.FloatingArray, pd.arrays.BooleanArray)


class ColumnWriter:
    """Where one column's `n` values go: memory that only the column has."""

    #: Whether the second axis of an array is the tokens'; None until that is known.
    token_axis: bool | None = False

    def __init__(self, column: OutputColumn, n: int) -> None:
        self.column = column
        self.n = n

    def write(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Write the `count` values of a batch at `rows`.

        Raises
        ------
        OutputError
            If count, dtype or shape are not as promised.
        """
        raise NotImplementedError

    def result(self, missing: Array | None) -> Any:
        """Return the column; rows where the mask is True are missing."""
        raise NotImplementedError


def build_writer(
    column: OutputColumn, n: int, *, nullable: bool, cast: bool
) -> ColumnWriter:
    """Return the writer for `n` rows of a column.

    With `cast` values are cast to the promised dtype where that keeps their kind.
    """
    target = pandas_dtype(column, nullable)
    if column.shape[:1] == (None,):
        return RaggedWriter(column, n, target, cast)
    if isinstance(target, pd.StringDtype):
        return TextWriter(column, n)
    values = _block_dtype(target)
    if values is not None:
        return NumberWriter(column, n, target, values, cast)
    if isinstance(target, np.dtype):
        return ObjectWriter(column, n)
    return ExtensionWriter(column, n, target)


def _block_dtype(target: Any) -> np.dtype[Any] | None:
    """Return the dtype of the memory behind `target`; None where it is Python's."""
    values: np.dtype[Any] | None = None
    if isinstance(target, TensorDtype):
        values = target.value
    elif isinstance(target, np.dtype):
        values = None if target.kind == "O" else target
    elif issubclass(target.construct_array_type(), MASKED):
        values = target.numpy_dtype
    return values


class NumberWriter(ColumnWriter):
    """Numbers, or arrays of one shape: one ``(n, *shape)`` block."""

    def __init__(
        self,
        column: OutputColumn,
        n: int,
        target: Any,
        values: np.dtype[Any],
        cast: bool,
    ) -> None:
        super().__init__(column, n)
        self.target = target
        self.dtype = values
        #: Dtype of a tensor that NumPy takes as it is.
        self.tensor_dtype = getattr(torch, values.name, None)
        self.cast = cast
        self.shape = tuple(size or 0 for size in column.shape)
        #: Allocated by the first batch.
        self.block: Array | None = None
        #: Rows that came as missing.
        self.absent: Array | None = None

    def write(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Write numbers."""
        missing = None
        if type(value) is np.ndarray and value.dtype == self.dtype:
            array = value
        elif (
            type(value) is torch.Tensor
            and value.dtype is self.tensor_dtype
            and value.layout is torch.strided
        ):
            array = value.numpy(force=True)
        else:
            array, missing = numbers(value, self.column, self.dtype)
        if array.shape != (count, *self.shape):
            array = one_per_row(array, self.column, self.shape, count)
        if array.dtype != self.dtype:
            array = cast_array(array, self.dtype, self.column, self.cast)
        if self.block is None:
            self.block = np.empty((self.n, *self.shape), self.dtype)
        self.block[rows] = array
        if missing is not None or self.absent is not None:
            self._absent(rows, missing)

    def result(self, missing: Array | None) -> Any:
        """Return the block as a pandas or NumPy array, without a copy."""
        block = self.block
        if block is None:
            block = np.zeros((self.n, *self.shape), self.dtype)
        if self.absent is not None:
            missing = self.absent if missing is None else self.absent | missing
        if isinstance(self.target, TensorDtype):
            return TensorArray.from_numpy(block, missing)
        if isinstance(self.target, np.dtype):
            if missing is not None and missing.any():
                block[missing] = np.nan if self.dtype.kind in "fc" else "NaT"
            return block
        mask = np.zeros(self.n, bool) if missing is None else missing.copy()
        block[mask] = 0
        return self.target.construct_array_type()(block, mask)

    def _absent(self, rows: Positions, missing: Array | None) -> None:
        if isinstance(self.target, np.dtype) and self.dtype.kind not in "fcmM":
            fitting = pandas_dtype(self.column, nullable=True)
            raise OutputError(
                f'output column "{self.column.name}" of dtype {self.dtype} came with '
                'missing values, which it cannot hold; pass on_error="null", or meta= '
                f'with a dtype that can, such as "{fitting}"'
            )
        if self.absent is None:
            self.absent = np.zeros(self.n, bool)
        self.absent[rows] = False if missing is None else missing


class PartsWriter(ColumnWriter):
    """An array of pandas for each batch; they are joined in the rows' order."""

    def __init__(self, column: OutputColumn, n: int, target: Any) -> None:
        super().__init__(column, n)
        self.target = target
        #: Rows of the batches so far, after none of the column's dtype.
        self.parts: list[Any] = [pd.array([], dtype=target)]
        #: Where each row is among the parts; -1 where it has none.
        self.places = np.full(n, -1)
        self.taken = 0

    def result(self, missing: Array | None) -> Any:
        """Return the rows in order."""
        whole = self.target.construct_array_type()._concat_same_type(self.parts)
        places = self.places if missing is None else np.where(missing, -1, self.places)
        if len(whole) == self.n and (places == np.arange(self.n)).all():
            return whole
        return whole.take(places, allow_fill=True)

    def _converted(self, values: Any, what: str, *, of_a_row: bool = False) -> Any:
        try:
            return pd.array(values, dtype=self.target)
        except (TypeError, ValueError, pa.ArrowException) as error:
            broken = OutputError(
                f'output column "{self.column.name}" is promised as {self.target}, the '
                f"model returned {what} that are none ({error}); pass meta= for what "
                "it returns"
            )
            broken.of_a_row = of_a_row
            raise broken from error

    def _append(self, rows: Positions, count: int, part: Any) -> None:
        self.parts.append(part)
        self.places[rows] = np.arange(self.taken, self.taken + count)
        self.taken += count


class RaggedWriter(PartsWriter):
    """Rows of different lengths."""

    def __init__(self, column: OutputColumn, n: int, target: Any, cast: bool) -> None:
        super().__init__(column, n, target)
        self.cast = cast
        self.token_axis = None if cast else True

    def write(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Keep the rows without their padding."""
        self._append(rows, count, self._rows(value, count, padding))

    def _rows(self, value: Any, count: int, padding: Padding) -> TensorArray:
        listed = isinstance(value, np.ndarray) and value.dtype.kind == "O"
        if listed or not is_array(value):
            return self._listed(value, count)
        inner = self.target.shape[1:]
        array = self._squeezed(to_array(value), count, padding)
        check_rows(array, count)
        found = f"rows of shape {array.shape[1:]}"
        if array.ndim < 2 or array.shape[2:] != inner:
            raise broken_promise(self.column, found, array)
        if padding.lengths is not None and not (self.cast or padding.covers(array)):
            found = f"{found} for a padded axis of {padding.width}"
            raise broken_promise(self.column, found, array)
        flat, lengths = (padding if self.token_axis else NOT_PADDED).trim(array)
        flat = cast_array(flat, self.target.value, self.column, self.cast)
        own = flat.copy() if np.shares_memory(flat, array) else flat
        return TensorArray(Rows(own, offsets_of(lengths)))

    def _squeezed(self, array: Array, count: int, padding: Padding) -> Array:
        """Give axes of length 1 back that the model squeezed."""
        inner = self.target.shape[1:]
        if padding.width == 1 and array.shape in ((count, *inner), inner):
            return array.reshape(count, 1, *inner)
        if count == 1 and array.ndim == len(self.column.shape):
            return array.reshape(1, *array.shape)
        return array

    def _listed(self, value: Any, count: int) -> TensorArray:
        rows = _by_row(value, count, len(self.column.shape))
        array: TensorArray = self._converted(owned(rows), "rows").copy()
        return array


class ObjectWriter(ColumnWriter):
    """A reference to a Python object for each row."""

    token_axis: bool | None = None

    def __init__(self, column: OutputColumn, n: int) -> None:
        super().__init__(column, n)
        self.block = np.empty(n, object)

    def write(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Keep an object a row, arrays without their padding."""
        padding = padding if self.token_axis else NOT_PADDED
        self.block[rows] = _objects(value, count, padding)

    def result(self, missing: Array | None) -> Any:
        """Return the objects."""
        if missing is not None:
            self.block[missing] = None
        return self.block


class TextWriter(ObjectWriter):
    """Text: references to each row's string, Arrow memory at the end."""

    token_axis = False

    def write(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Keep the strings, or None where one is missing."""
        if torch.is_tensor(value):
            raise broken_promise(
                self.column, f"values of {dtype_name(value.dtype)}", value
            )
        texts = np.asarray(value, dtype=object)
        if texts.shape == (count, 1) or (count == 1 and texts.shape == ()):
            texts = texts.reshape(count)
        check_rows(texts, count)
        kind = pd.api.types.infer_dtype(texts.reshape(-1), skipna=True)
        if kind not in ("string", "empty") or texts.shape != (count,):
            shape = "" if texts.shape == (count,) else f" in rows of {texts.shape[1:]}"
            array = value if isinstance(value, np.ndarray) else texts
            raise broken_promise(self.column, f"{kind} values{shape}", array)
        self.block[rows] = texts

    def result(self, missing: Array | None) -> Any:
        """Return Dask's string array."""
        texts = pa.array(super().result(missing), pa.large_string(), from_pandas=True)
        return pd.array(texts, dtype=STRING)


class ExtensionWriter(PartsWriter):
    """Values of a dtype that only pandas has."""

    token_axis = None

    def write(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Keep the rows in an array of the promised dtype."""
        if not isinstance(value, pd.Series | pd.api.extensions.ExtensionArray):
            padding = padding if self.token_axis else NOT_PADDED
            value = _objects(value, count, padding).tolist()
        check_rows(value, count)
        self._append(rows, count, self._converted(value, "values", of_a_row=True))


def _objects(value: Any, count: int, padding: Padding) -> Array:
    """Return an object a row in an array of one axis, however alike the rows are."""
    items = _by_row(to_array(value) if is_array(value) else value, count, 0)
    if isinstance(items, np.ndarray) and items.ndim > 1:
        flat, lengths = padding.trim(items)
        items = np.split(flat, np.cumsum(lengths)[:-1])
    elif isinstance(items, np.ndarray):
        items = items.tolist()
    return np.fromiter(map(owned, items), object, len(items))


def _by_row(value: Any, count: int, rank: int) -> Any:
    """Return a value with an entry a row, each of `rank` axes.

    One row may come without its axis, where the model squeezes. What pandas and Arrow
    have is by row, and so is a row that is missing.
    """
    if isinstance(value, pa.Array | pa.ChunkedArray):
        value = pd.arrays.ArrowExtensionArray(value)
    by_row = isinstance(value, pd.Series | pd.api.extensions.ExtensionArray)
    if count == 1 and not by_row and _depth(value) == rank:
        rows = value if isinstance(value, list) or np.ndim(value) else ()
        if [row is None for row in rows] != [True]:
            value = [value[()] if isinstance(value, np.ndarray) else value]
    check_rows(value, count)
    return value


def _depth(value: Any) -> int:
    """Return how many axes nested lists, or arrays, have."""
    if hasattr(value, "shape"):
        boxed = value.ravel() if value.dtype == object else ()
        return len(value.shape) + max(map(_depth, boxed), default=0)
    if not isinstance(value, list | tuple):
        return 0
    return 1 + max((_depth(item) for item in value), default=0)
