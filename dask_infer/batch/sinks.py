"""One output column while batches come in: where their values are written.

A `Sink` a kind of column: numbers and tensors (one block), ragged rows (parts),
text and other objects (references).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_infer.batch.fields import is_tensor
from dask_infer.batch.outputs import STRING, pandas_dtype
from dask_infer.batch.returned import (
    Array,
    broken_promise,
    cast_array,
    is_ours,
    numbers,
    to_array,
)
from dask_infer.batch.rows import Rows, join, offsets_of
from dask_infer.batch.tensor_array import TensorArray, TensorDtype
from dask_infer.errors import InputError, OutputError
from dask_infer.spec import OutputColumn

Positions: TypeAlias = slice | Array
Columns: TypeAlias = dict[str, Any]

#: Array types of pandas that keep a mask beside NumPy values.
MASKED = (pd.arrays.IntegerArray, pd.arrays.FloatingArray, pd.arrays.BooleanArray)


@dataclass(frozen=True)
class Padding:
    """How the texts of a batch were padded, if they were."""

    #: Real length of each row.
    lengths: Array | None = None
    #: Length of the padded axis.
    padded: int | None = None
    side: str = "right"

    def covers(self, array: Array) -> bool:
        """Whether the array's second axis is the padded one."""
        known = self.lengths is not None and array.ndim > 1
        return known and array.shape[1] == self.padded

    def trim(self, array: Array) -> tuple[Array, Array]:
        """Return the rows end to end without padding, and how long each is."""
        rows, width = array.shape[:2]
        lengths = np.full(rows, width)
        if self.covers(array):
            lengths = np.minimum(np.asarray(self.lengths), width)
        if (lengths == width).all():
            return array.reshape(rows * width, *array.shape[2:]), lengths
        place, ends = np.arange(width), lengths[:, None]
        real = place >= width - ends if self.side == "left" else place < ends
        return array[real], lengths


class Sink(Protocol):
    """Where one column's values go."""

    def put(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Write the `count` values of a batch at `rows`.

        Raises
        ------
        OutputError
            If dtype or shape are not as promised.
        """

    def finish(self, missing: Array | None) -> Any:
        """Return the column; rows where the mask is True are missing."""


def build_sink(column: OutputColumn, n: int, *, nullable: bool, cast: bool) -> Sink:
    """Return the sink for `n` rows of a column.

    With `cast` values are cast to the promised dtype where that keeps their kind.
    """
    if column.shape[:1] == (None,):
        return RaggedSink(column, n, cast)
    target = pandas_dtype(column, nullable)
    if isinstance(target, pd.StringDtype):
        return TextSink(column, n)
    values = _block_dtype(column, target)
    if values is None:
        return ObjectSink(column, n, target)
    return NumberSink(column, n, target, values, cast)


def _block_dtype(column: OutputColumn, target: Any) -> np.dtype[Any] | None:
    """Return the dtype of the memory behind `target`; None where it is Python's."""
    values: np.dtype[Any] | None = None
    if isinstance(target, TensorDtype):
        values = target.value
    elif isinstance(target, np.dtype):
        values = None if target.kind == "O" else target
    elif issubclass(target.construct_array_type(), MASKED):
        values = target.numpy_dtype
    return values


class NumberSink:
    """Numbers, or arrays of one shape: one ``(n, *shape)`` block."""

    def __init__(
        self,
        column: OutputColumn,
        n: int,
        target: Any,
        values: np.dtype[Any],
        cast: bool,
    ) -> None:
        self.column = column
        self.n = n
        self.target = target
        self.dtype = values
        self.cast = cast
        self.shape = tuple(size or 0 for size in column.shape)
        #: Allocated by the first batch that is not the whole partition.
        self.block: Array | None = None
        #: Rows that came as missing.
        self.absent: Array | None = None

    def put(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Write numbers; take over the memory of a tensor that has all rows."""
        array, missing = numbers(value, self.column, self.dtype)
        if array.shape[1:] != self.shape:
            array = self._reshaped(array, count)
        array = cast_array(array, self.dtype, self.column, self.cast)
        if self.block is None:
            if count == self.n and isinstance(rows, slice) and is_ours(array):
                self.block = array
                return
            self.block = np.empty((self.n, *self.shape), self.dtype)
        self.block[rows] = array
        if missing is not None or self.absent is not None:
            self._absent(rows, missing)

    def finish(self, missing: Array | None) -> Any:
        """Return the block as a pandas or NumPy array, without a copy."""
        block = self.block
        if block is None:
            block = np.zeros((self.n, *self.shape), self.dtype)
        if self.absent is not None:
            missing = self.absent if missing is None else self.absent | missing
        if isinstance(self.target, TensorDtype):
            return TensorArray.from_numpy(block, missing)
        if isinstance(self.target, np.dtype):
            return self._plain(block, missing)
        mask = np.zeros(self.n, bool) if missing is None else missing.copy()
        block[mask] = 0
        return self.target.construct_array_type()(block, mask)

    def _reshaped(self, array: Array, count: int) -> Array:
        if self.shape == () and array.shape[1:] == (1,):
            return array.reshape(count)
        raise broken_promise(self.column, f"rows of shape {array.shape[1:]}", array)

    def _absent(self, rows: Positions, missing: Array | None) -> None:
        if isinstance(self.target, np.dtype) and self.dtype.kind not in "fcmM":
            raise OutputError(
                f'output column "{self.column.name}" of dtype {self.dtype} came with '
                'missing values, which it cannot hold; pass on_error="null", or meta= '
                f'with a dtype that can, such as "{_nullable(self.dtype)}"'
            )
        if self.absent is None:
            self.absent = np.zeros(self.n, bool)
        self.absent[rows] = False if missing is None else missing

    def _plain(self, block: Array, missing: Array | None) -> Array:
        if missing is not None and missing.any():
            block[missing] = np.nan if self.dtype.kind in "fc" else "NaT"
        return block


class RaggedSink:
    """Rows of different lengths: parts, joined in the rows' order at the end."""

    def __init__(self, column: OutputColumn, n: int, cast: bool) -> None:
        self.column = column
        self.n = n
        self.dtype = np.dtype(column.dtype)
        self.inner = tuple(size or 0 for size in column.shape[1:])
        self.cast = cast
        self.parts: list[Rows] = []
        #: Where each row stands among the parts; -1 where it has none.
        self.places = np.full(n, -1)
        self.taken = 0

    def put(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Keep the rows without their padding."""
        self.parts.append(self._rows(value, padding))
        self.places[rows] = np.arange(self.taken, self.taken + count)
        self.taken += count

    def finish(self, missing: Array | None) -> TensorArray:
        """Return the rows in order."""
        nothing = Rows(np.zeros((0, *self.inner), self.dtype), np.zeros(1, np.int64))
        rows = join(self.parts) if self.parts else nothing
        places = self.places
        if missing is not None:
            places = np.where(missing, -1, places)
        if len(rows) != self.n or (places != np.arange(self.n)).any():
            rows = rows.take(places)
        return TensorArray(rows)

    def _rows(self, value: Any, padding: Padding) -> Rows:
        listed = isinstance(value, np.ndarray) and value.dtype.kind == "O"
        if listed or not (is_tensor(value) or isinstance(value, np.ndarray)):
            return self._listed(value)
        array = to_array(value)
        if array.ndim < 2 or array.shape[2:] != self.inner:
            raise broken_promise(self.column, f"rows of shape {array.shape[1:]}", array)
        if padding.lengths is not None and not (self.cast or padding.covers(array)):
            raise broken_promise(
                self.column,
                f"rows of shape {array.shape[1:]} for a padded axis of "
                f"{padding.padded}",
                array,
            )
        flat, lengths = padding.trim(array)
        flat = cast_array(flat, self.dtype, self.column, self.cast)
        if np.shares_memory(flat, array) and not is_ours(array):
            flat = flat.copy()
        return Rows(flat, offsets_of(lengths))

    def _listed(self, value: Any) -> Rows:
        dtype: Any = TensorDtype(self.dtype, self.column.shape)
        try:
            array = pd.array(value, dtype=dtype)
        except (InputError, TypeError, ValueError) as error:
            raise OutputError(
                f'output column "{self.column.name}" is promised as {dtype.name}, the '
                f"model returned rows that are none ({error}); pass meta= for what it "
                "returns"
            ) from error
        values, offsets = array.to_ragged()
        missing = array.isna()
        return Rows(values, offsets, missing if missing.any() else None)


class TextSink:
    """Text: references to each row's string, Arrow memory at the end."""

    def __init__(self, column: OutputColumn, n: int) -> None:
        self.column = column
        self.block = np.empty(n, object)

    def put(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Keep the strings, or None where one is missing."""
        if is_tensor(value):
            raise broken_promise(self.column, f"values of {value.dtype}", value)
        texts = np.asarray(value, dtype=object)
        if texts.shape == (count, 1):
            texts = texts.reshape(count)
        kind = pd.api.types.infer_dtype(texts.reshape(-1), skipna=True)
        if kind not in ("string", "empty") or texts.shape != (count,):
            shape = "" if texts.shape == (count,) else f" in rows of {texts.shape[1:]}"
            array = value if isinstance(value, np.ndarray) else texts
            raise broken_promise(self.column, f"{kind} values{shape}", array)
        self.block[rows] = texts

    def finish(self, missing: Array | None) -> Any:
        """Return Dask's string array."""
        if missing is not None:
            self.block[missing] = None
        return pd.array(self.block, dtype=STRING)


class ObjectSink:
    """Anything else: a Python object a row."""

    def __init__(self, column: OutputColumn, n: int, target: Any) -> None:
        self.column = column
        self.target = target
        self.block = np.empty(n, object)

    def put(self, rows: Positions, count: int, value: Any, padding: Padding) -> None:
        """Keep a reference a row, arrays without their padding."""
        self.block[rows] = _objects(value, padding)

    def finish(self, missing: Array | None) -> Any:
        """Return the objects, as an array of the promised dtype."""
        if missing is not None:
            self.block[missing] = None
        if isinstance(self.target, np.dtype):
            return self.block
        try:
            return pd.array(self.block.tolist(), dtype=self.target)
        except (TypeError, ValueError, pa.ArrowInvalid) as error:
            raise OutputError(
                f'output column "{self.column.name}" is promised as {self.target}, the '
                f"model returned values that are none ({error}); pass meta= for what "
                "it returns"
            ) from error


def _objects(value: Any, padding: Padding) -> Array:
    """Return a reference a row in an array of one axis, however alike the rows are."""
    items = value
    if is_tensor(value) or isinstance(value, np.ndarray):
        items = to_array(value)
        if padding.covers(items):
            flat, lengths = padding.trim(items)
            items = np.split(flat.copy(), np.cumsum(lengths)[:-1])
        else:
            items = items.tolist() if items.ndim == 1 else items.copy()
    block = np.empty(len(items), object)
    for place, item in enumerate(items):
        block[place] = item
    return block


def _nullable(dtype: np.dtype[Any]) -> str:
    return str(pandas_dtype(OutputColumn("", dtype.name), nullable=True))
