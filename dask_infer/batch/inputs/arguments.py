"""One argument of the model, cut into batches.

Each kind of argument opens its columns once for a frame; `add_to` copies a batch's rows
into memory of their own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.inputs.columns import ColumnValues, TextColumn, open_column
from dask_infer.batch.inputs.encode_options import ArgumentReader, EncodeOptions
from dask_infer.batch.inputs.list_columns import holds_ids, is_ragged
from dask_infer.batch.inputs.plain_columns import COPY_ON_WRITE, plain_frame
from dask_infer.batch.inputs.resolve_inputs import cannot_be_stacked
from dask_infer.batch.inputs.token_arguments import IdsArgument, TextArgument
from dask_infer.batch.outputs.column_dtypes import dtype_name
from dask_infer.batch.tensor.lists import to_ragged
from dask_infer.batch.tensor.rows import Array, Positions
from dask_infer.spec import Argument


def open_argument(
    frame: pd.DataFrame,
    argument: Argument,
    options: EncodeOptions,
    *,
    none: bool = False,
    place: int = 0,
) -> ArgumentReader:
    """Open the columns of one argument.

    `none` as of `plain_frame`; `place` is the position of the argument among all.
    """
    if options.interface == "frame":
        return FrameArgument(frame, argument, none)
    if argument.stacked:
        return StackedArgument(frame, argument, options)
    series = frame[argument.columns[0]]
    text = argument.content == "text"
    if text and options.tokenizer is not None:
        return TextArgument([frame[name] for name in argument.columns], options)
    any_length = not text and argument.shape in (None, (None,))
    if any_length and options.rules.masked and holds_ids(series):
        return IdsArgument(series, argument, options, place)
    lists = options.interface == "numpy" and not options.dtypes
    if any_length and lists and is_ragged(series):
        return ArraysArgument(series, argument)
    return ColumnArgument(series, argument, options)


class FrameArgument(ArgumentReader):
    """A pandas frame, or the Series of one column, as plain pandas has them."""

    def __init__(self, frame: pd.DataFrame, argument: Argument, none: bool) -> None:
        columns = list(argument.columns)
        plain = plain_frame(frame[columns], none=none)
        self._table: Any = plain if argument.stacked else plain[columns[0]]
        self.signature = tuple(map(str, plain.dtypes))
        self.bytes_per_row = 8 * len(columns)

    def add_to(self, batch: Batch, positions: Positions) -> None:
        """Add the rows of the frame."""
        rows = self._table.iloc[positions]
        # Before pandas 3 what the estimator changes in place is the partition.
        batch.add(None, rows if COPY_ON_WRITE else rows.copy())


class ArraysArgument(ArgumentReader):
    """Lists of any length for a function: a list of arrays."""

    signature = "arrays"

    def __init__(self, series: pd.Series[Any], argument: Argument) -> None:
        self._series = series
        self._keyword = argument.keyword
        self._present = series.notna().to_numpy()
        #: Where each row is among those that are present.
        self._places = np.cumsum(self._present) - 1
        self._rows = to_ragged(series[self._present])
        self.bytes_per_row = self._rows.values.nbytes // max(1, len(self._rows))

    def add_to(self, batch: Batch, positions: Positions) -> None:
        """Add the arrays of the rows."""
        if not self._present[positions].all():
            to_ragged(self._series.iloc[positions])  # names the missing row
        places = self._places[positions].tolist()
        batch.add(self._keyword, [self._rows.row(place).copy() for place in places])


class ColumnArgument(ArgumentReader):
    """One column: ``(n,)``, ``(n, *shape)`` of lists, or a list of str."""

    def __init__(
        self, series: pd.Series[Any], argument: Argument, options: EncodeOptions
    ) -> None:
        self._options = options
        self._keyword = argument.keyword
        self._is_tensor = options.interface == "tensor"
        self._dtype = options.dtype(argument)
        self._block = _numpy_dtype(self._dtype)
        self._values: ColumnValues
        if argument.content == "text" and options.interface == "numpy":
            self._values = TextColumn(series)
        else:
            tensor = self._is_tensor or argument.dtype is not None
            self._values = open_column(series, argument.shape or None, tensor=tensor)
        shape: Any = getattr(self._values, "shape", argument.shape)
        self.signature = (shape, str(self._dtype))
        if shape is not None and None not in shape:
            self.bytes_per_row = 8 * math.prod(shape)

    def add_to(self, batch: Batch, positions: Positions) -> None:
        """Add the values of the rows."""
        dtype = self._dtype
        block = self._values.take(positions, self._block)
        if dtype is None and self._is_tensor:
            floating = self._options.floating
            by_kind = {"f": floating, "i": torch.int64, "u": torch.int64}
            dtype = by_kind.get(block.dtype.kind)
            if dtype is torch.int64 and block.dtype != np.int64:
                block = self._values.take(positions, np.int64)
        value: Any = block
        if block.dtype == object:
            value = block.tolist() if self._values.kind == "text" else block
        elif self._is_tensor:
            value = torch.from_numpy(block)
            value = value if dtype is None else value.to(dtype)
        batch.add(self._keyword, value)


class StackedArgument(ArgumentReader):
    """Columns side by side, one ``(n, k)`` block.

    The columns are copied one by one into a block of the batch's size, which fits the
    cache. 320,000 rows of 32 float32 columns in batches of 4,096, one core, whether
    the frame holds one block or 32: so 11 ms, np.stack 12, a (k, n) block and a
    transposing copy 11 (torch) or 24 (NumPy), torch.stack 23-29, frame.to_numpy made
    contiguous 24-29; the forward of an MLP 32-128-128-1 takes 220.
    """

    def __init__(
        self, frame: pd.DataFrame, argument: Argument, options: EncodeOptions
    ) -> None:
        self._options = options
        self._keyword = argument.keyword
        self._names = argument.columns
        self._dtype = options.dtype(argument)
        self._block = _numpy_dtype(self._dtype)
        tensor = options.interface == "tensor" or self._dtype is not None
        self._columns = [
            open_column(frame[name], tensor=tensor, stacked=True)
            for name in argument.columns
        ]
        floating = self._block is not None and self._block.kind == "f"
        #: Values that can be copied without a look at them.
        self._plain = [c.floats if floating else None for c in self._columns]
        self._whole = _side_by_side(self._plain)
        self.signature = (len(self._columns), str(self._dtype))
        itemsize = 8 if self._block is None else self._block.itemsize
        self.bytes_per_row = itemsize * len(self._columns)

    def add_to(self, batch: Batch, positions: Positions) -> None:
        """Add the block of the rows."""
        if self._block is None:
            block = self._own_dtype(positions)
        else:
            # What is beyond a dtype's range is infinite, as in torch.
            with np.errstate(over="ignore", invalid="ignore"):
                block = self._cast(positions, batch.rows, self._block)
        batch.add(self._keyword, self._options.wrap(block, self._dtype))

    def _cast(self, positions: Positions, rows: int, dtype: np.dtype[Any]) -> Array:
        if self._whole is not None:
            return np.array(self._whole[positions], dtype, order="C")
        block = np.empty((rows, len(self._columns)), dtype)
        for j, plain in enumerate(self._plain):
            block[:, j] = (
                self._columns[j].take(positions, dtype)
                if plain is None
                else plain[positions]
            )
        return block

    def _own_dtype(self, positions: Positions) -> Array:
        taken = [column.take(positions, None) for column in self._columns]
        try:
            return np.column_stack(taken)
        except (TypeError, ValueError):
            dtypes = [column.dtype for column in taken]
            raise cannot_be_stacked(self._names, dtypes) from None


def _numpy_dtype(dtype: torch.dtype | None) -> np.dtype[Any] | None:
    """Return the dtype in which NumPy makes what torch casts to `dtype`."""
    return None if dtype is None else np.dtype(dtype_name(dtype))


def _side_by_side(columns: list[Array | None]) -> Array | None:
    """Return an ``(n, k)`` view of columns that lie one after the other in memory.

    They do in a frame of one block, as Dask reads it from parquet. One transposing
    copy of a batch takes as long as 32 copies of a column, but the forward after it
    was 15 % faster (MLP 32-128-128-1, batches of 2,048, torch 2.13.0): the batch is
    written once and in order, so it is still in the cache.
    """
    first = columns[0]
    if first is None or first.base is None or not len(first):
        return None
    for place, column in enumerate(columns):
        if (
            column is None
            or column.base is not first.base
            or column.dtype != first.dtype
            or not column.flags.c_contiguous
            or column.ctypes.data != first.ctypes.data + place * first.nbytes
        ):
            return None
    return np.lib.stride_tricks.as_strided(
        first,
        shape=(len(first), len(columns)),
        strides=(first.itemsize, first.nbytes),
        writeable=False,
    )
