"""One argument of the model, cut into batches.

Each kind of argument opens its columns once for a frame; `call` copies a batch's rows
into memory of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from dask_infer.batch.inputs.plain_columns import COPY_ON_WRITE, plain_frame
from dask_infer.batch.inputs.values import (
    Array,
    ColumnValues,
    TextColumn,
    holds_ids,
    lengths_of,
    open_column,
    open_ragged,
)
from dask_infer.batch.tensor.lists import to_ragged
from dask_infer.batch.text.tokenize import (
    IDS,
    Ragged,
    Rows,
    Side,
    Tokens,
    longest_text,
    tokenize,
)
from dask_infer.errors import InputError
from dask_infer.spec import Argument
from dask_infer.spec.token_rules import TokenRules

Interface = Literal["tensor", "numpy", "frame"]
Lengths = npt.NDArray[np.int64]

#: NumPy's word for a torch dtype; others are made as float32 and cast by torch.
_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


@dataclass(frozen=True)
class Call:
    """What a model is called with, and how its rows are padded."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    #: Real tokens of each row; None where nothing is padded.
    lengths: Lengths | None = None
    #: Tokens of the padded axis; 0 where nothing is padded.
    padded: int = 0
    #: Where the padding of each row stands.
    side: Side = "right"


@dataclass(frozen=True)
class EncodeOptions:
    """How columns become what the model reads."""

    interface: Interface
    floating: torch.dtype
    tokenizer: Callable[..., Any] | None = None
    rules: TokenRules = field(default_factory=TokenRules)
    max_length: int | None = None
    #: Names and dtypes of the arguments, in order; none where nobody tells.
    dtypes: Sequence[tuple[str, str]] = ()

    @property
    def side(self) -> Side | None:
        """Where rows must be padded; None leaves it to the tokenizer."""
        return "left" if self.rules.left else None

    def padding(self, argument: Argument, place: int) -> tuple[int, int | None]:
        """Return what ids are padded with, and what counts as padding among them."""
        first = argument.keyword is None and place == 0
        if first or argument.keyword in IDS:
            return self.rules.pad or 0, self.rules.unseen
        return 0, None

    def dtype(self, argument: Argument) -> torch.dtype | None:
        """Return the dtype an argument is cast to; None leaves it to its values."""
        # The client may not have known that the model reads tensors: a factory.
        unknown = argument.dtype is None
        if unknown and not (argument.stacked and self.interface == "tensor"):
            return None
        if unknown or argument.dtype == "floating":
            return self.floating
        assert argument.dtype is not None
        dtype = getattr(torch, argument.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def dtype_of(self, values: Array) -> torch.dtype | None:
        """Return the dtype of a column that nothing was known about."""
        if self.interface != "tensor":
            return None
        by_code = {"f": self.floating, "i": torch.int64, "u": torch.int64}
        return by_code.get(values.dtype.kind)

    def wrap(self, block: Array, dtype: torch.dtype | None) -> Any:
        """Return a block that nobody else holds as the model wants it."""
        if self.interface != "tensor":
            return block
        tensor = torch.from_numpy(block)
        return tensor if dtype is None else tensor.to(dtype)


class ArgumentReader:
    """One argument of the model, cut into batches."""

    #: What a row looks like.
    signature: object = None
    #: Bytes of one row's tensors; 0 where nobody can tell.
    bytes_per_row: int = 0
    #: Tokens of each row, to plan with; None where rows have no length.
    lengths: Lengths | None = None

    def call(self, rows: Rows) -> Call:
        """Return the argument for `rows`."""
        raise NotImplementedError


def open_argument(
    frame: pd.DataFrame,
    argument: Argument,
    options: EncodeOptions,
    *,
    none: bool = False,
    place: int = 0,
) -> ArgumentReader:
    """Open the columns of one argument.

    `none` as of `plain_frame`; `place` is where the argument stands among all.
    """
    if options.interface == "frame":
        return FrameArgument(frame, argument, none)
    if argument.stacked:
        return StackArgument(frame, argument, options)
    series = frame[argument.columns[0]]
    if argument.content == "text" and options.tokenizer is not None:
        return TextArgument([frame[name] for name in argument.columns], options)
    if argument.content == "text" and options.interface == "numpy":
        return TextListArgument(series)
    if _may_be_padded(argument, options) and holds_ids(series):
        return IdsArgument(series, options, *options.padding(argument, place))
    if (
        options.interface == "numpy"
        and not options.dtypes
        and is_ragged(series, argument)
    ):
        return ArraysArgument(series)
    return ColumnArgument(series, argument, options)


def _may_be_padded(argument: Argument, options: EncodeOptions) -> bool:
    """Whether rows of any length may go in: the model must be told what is padding."""
    return options.rules.masked and argument.shape in (None, (None,))


class FrameArgument(ArgumentReader):
    """A pandas frame, or the Series of one column, as plain pandas has them."""

    def __init__(self, frame: pd.DataFrame, argument: Argument, none: bool) -> None:
        columns = list(argument.columns)
        self._frame = plain_frame(frame[columns], none=none)
        self._pick: Any = slice(None) if argument.stacked else columns[0]
        self.signature = tuple(map(str, self._frame.dtypes))
        self.bytes_per_row = 8 * len(columns)

    def call(self, rows: Rows) -> Call:
        """Return the rows of the frame."""
        picked = self._frame[self._pick]
        given = picked.iloc[rows]
        # Before pandas 3 what the estimator changes in place is the partition.
        return Call((given if COPY_ON_WRITE else given.copy(),))


class TextListArgument(ArgumentReader):
    """A list of str."""

    signature = "text"

    def __init__(self, series: pd.Series[Any]) -> None:
        self._texts = TextColumn(series)

    def call(self, rows: Rows) -> Call:
        """Return the texts of `rows`."""
        return Call((self._texts.take(rows, None).tolist(),))


def is_ragged(series: pd.Series[Any], argument: Argument) -> bool:
    """Whether rows of a column that no shape is known of differ in length."""
    if argument.stacked or argument.shape not in (None, (None,)):
        return False
    lengths = lengths_of(series)
    return lengths is not None and bool((lengths != lengths[:1]).any())


class ArraysArgument(ArgumentReader):
    """Lists of any length for a function: a list of arrays."""

    signature = "arrays"

    def __init__(self, series: pd.Series[Any]) -> None:
        self._series = series
        self._present = series.notna().to_numpy()
        #: Where each row stands among those that are present.
        self._places = np.cumsum(self._present) - 1
        self._flat, self._offsets = to_ragged(series[self._present])
        self.bytes_per_row = self._flat.nbytes // max(1, len(self._offsets) - 1)

    def call(self, rows: Rows) -> Call:
        """Return the arrays of `rows`, in memory of their own."""
        if not self._present[rows].all():
            to_ragged(self._series.iloc[rows])  # names the missing row
        starts, ends = self._offsets[:-1], self._offsets[1:]
        places = self._places[rows]
        cuts = zip(starts[places], ends[places], strict=True)
        return Call(([self._flat[start:end].copy() for start, end in cuts],))


class ColumnArgument(ArgumentReader):
    """One column: ``(n,)``, or ``(n, *shape)`` of lists."""

    def __init__(
        self, series: pd.Series[Any], argument: Argument, options: EncodeOptions
    ) -> None:
        self._options = options
        tensor = options.interface == "tensor" or argument.dtype is not None
        self._values = open_column(series, argument.shape or None, tensor=tensor)
        self._dtype = options.dtype(argument)
        shape: Any = getattr(self._values, "shape", argument.shape)
        self.signature = (shape, str(self._dtype))
        if shape is not None and None not in shape:
            self.bytes_per_row = 8 * math.prod(shape)

    def call(self, rows: Rows) -> Call:
        """Return the values of `rows`."""
        if self._dtype is None:
            return self._own_dtype(rows)
        block = self._values.take(rows, _NUMPY.get(self._dtype, np.float32))
        return Call((self._options.wrap(block, self._dtype),))

    def _own_dtype(self, rows: Rows) -> Call:
        block = self._values.take(rows, None)
        if block.dtype == object:
            return Call((block.tolist() if self._values.kind == "text" else block,))
        dtype = self._options.dtype_of(block)
        if dtype is torch.int64 and block.dtype != np.int64:
            block = self._values.take(rows, np.int64)
        return Call((self._options.wrap(block, dtype),))


class StackArgument(ArgumentReader):
    """Columns side by side, one ``(n, k)`` block.

    The columns are copied one by one into a block of the batch's size, which fits the
    cache. 320,000 rows of 32 float32 columns in batches of 4,096, one core, whether
    the frame holds one block or 32: this way 11 ms, np.stack 12, a (k, n) block and a
    transposing copy 11 (torch) or 24 (NumPy), torch.stack 23-29, frame.to_numpy made
    contiguous 24-29; the forward of an MLP 32-128-128-1 takes 220.
    """

    def __init__(
        self, frame: pd.DataFrame, argument: Argument, options: EncodeOptions
    ) -> None:
        self._options = options
        self._rows = len(frame)
        self._names = argument.columns
        self._dtype = options.dtype(argument)
        tensor = options.interface == "tensor" or self._dtype is not None
        self._columns = [
            open_column(frame[name], tensor=tensor, stacked=True)
            for name in argument.columns
        ]
        block = None if self._dtype is None else _NUMPY.get(self._dtype, np.float32)
        self._block = None if block is None else np.dtype(block)
        self._plain = [_plain(column, self._block) for column in self._columns]
        self._whole = _side_by_side(self._plain)
        self.signature = (len(self._columns), str(self._dtype))
        itemsize = 8 if self._block is None else self._block.itemsize
        self.bytes_per_row = itemsize * len(self._columns)

    def call(self, rows: Rows) -> Call:
        """Return the block of `rows`."""
        if self._block is None:
            return Call((self._options.wrap(self._own_dtype(rows), None),))
        if self._whole is not None:
            block = np.array(self._whole[rows], order="C")
            return Call((self._options.wrap(block, self._dtype),))
        block = np.empty(
            (count_rows(rows, self._rows), len(self._columns)), self._block
        )
        for j, (column, plain) in enumerate(
            zip(self._columns, self._plain, strict=True)
        ):
            values = column.take(rows, block.dtype) if plain is None else plain[rows]
            block[:, j] = values
        return Call((self._options.wrap(block, self._dtype),))

    def _own_dtype(self, rows: Rows) -> Array:
        taken = [column.take(rows, None) for column in self._columns]
        try:
            return np.column_stack(taken)
        except (TypeError, ValueError):
            dtypes = ", ".join(str(column.dtype) for column in taken)
            apart = ", ".join(f'"{name}"' for name in self._names)
            raise InputError(
                f"columns of {dtypes} cannot be stacked into one array; pass them as "
                f"arguments of their own, columns=({apart}) say"
            ) from None


def _side_by_side(columns: list[Array | None]) -> Array | None:
    """Return an ``(n, k)`` view of columns that lie one after the other in memory.

    They do in a frame of one block, as Dask options it from parquet. One transposing
    copy of a batch takes as long as 32 copies of a column, but the forward after it
    was 15 % faster (MLP 32-128-128-1, batches of 2,048, torch 2.13.0): the batch is
    written once and in order, so it is still in the cache.
    """
    first = columns[0]
    if first is None or not len(first) or len(columns) < 2:
        return None
    step = first.nbytes
    for place, column in enumerate(columns):
        if (
            column is None
            or column.dtype != first.dtype
            or not column.flags.c_contiguous
            or column.ctypes.data != first.ctypes.data + place * step
        ):
            return None
    if first.base is None or first.base is not columns[-1].base:  # type: ignore[union-attr]
        return None
    view = np.lib.stride_tricks.as_strided(
        first,
        shape=(len(first), len(columns)),
        strides=(first.itemsize, step),
        writeable=False,
    )
    return view


def _plain(column: ColumnValues, dtype: np.dtype[Any] | None) -> Array | None:
    """Return a column's array where nothing has to be checked on the way."""
    plain = getattr(column, "plain", None)
    return None if dtype is None or plain is None else plain(dtype)


def count_rows(rows: Rows, n: int) -> int:
    """How many of `n` rows a batch has."""
    return len(range(n)[rows]) if isinstance(rows, slice) else len(rows)


class IdsArgument(ArgumentReader):
    """Lists of integers of any length, padded under an attention mask."""

    def __init__(
        self,
        series: pd.Series[Any],
        options: EncodeOptions,
        fill: int,
        unseen: int | None,
    ) -> None:
        self._series = series
        self._options = options
        self._fill, self._unseen = fill, unseen
        self._side: Side = options.side or "right"
        self._ragged: Ragged | None
        try:
            self._ragged = open_ragged(series, fill)
            self.lengths = self._ragged.lengths
            self.bytes_per_row = 16 * int(self.lengths.mean()) if len(series) else 0
        except InputError:
            # A row is missing: only the batches that hold it are to fail.
            self._ragged = None
        self.signature = "ids"

    def call(self, rows: Rows) -> Call:
        """Return the rows as long as the longest of them, and their mask."""
        if self._ragged is None:
            given = self._series.iloc[rows]
            ragged, rows = open_ragged(given, self._fill), slice(None)
        else:
            ragged = self._ragged
        block, mask = ragged.padded(rows, self._side)
        if self._unseen is not None:
            mask &= block != self._unseen
        return Call(
            (self._options.wrap(block, None),),
            {"attention_mask": self._options.wrap(mask.astype(np.int64), None)},
            ragged.lengths[rows],
            block.shape[1],
            self._side,
        )


class TextArgument(ArgumentReader):
    """TextArgument through the tokenizer: keyword arguments, padded batch by batch."""

    #: The partition's tokens; None where its texts failed together.
    tokens: Tokens | None

    def __init__(self, columns: list[pd.Series[Any]], options: EncodeOptions) -> None:
        assert options.tokenizer is not None
        self._options = options
        self._names = " and ".join(f'"{series.name}"' for series in columns)
        #: The texts; two columns are pairs.
        self._texts = [TextColumn(series) for series in columns]
        self.signature = ("tokens", longest_text(options.tokenizer, options.max_length))
        #: TextColumn truncated so far.
        self.truncated = 0
        try:
            self.tokens = self._tokenize([texts.present() for texts in self._texts])
        except InputError:
            raise
        except Exception:
            # Some text is bad: only the batches that hold it are to fail.
            self.tokens = None
        else:
            self.lengths = self.tokens.padded_lengths
            self.truncated = self.tokens.truncated

    def call(self, rows: Rows) -> Call:
        """Return the tokens of `rows`."""
        # Complains of what is missing or no text.
        texts = [column.take(rows, None).tolist() for column in self._texts]
        tokens = self.tokens
        if tokens is None:
            tokens, rows = self._tokenize_batch(texts), slice(None)
        arrays, padded = tokens.batch(rows)
        kwargs = {key: self._options.wrap(value, None) for key, value in arrays.items()}
        if tokens.lengths is None:
            return Call((), kwargs)
        return Call((), kwargs, tokens.lengths[rows], padded, tokens.side)

    def _tokenize(self, texts: list[list[str]]) -> Tokens:
        options = self._options
        assert options.tokenizer is not None
        return tokenize(
            texts[0],
            options.tokenizer,
            pairs=texts[1] if len(texts) > 1 else None,
            accepts=options.rules.accepts,
            max_length=options.max_length,
            side=options.side,
            pad=options.rules.pad,
        )

    def _tokenize_batch(self, texts: list[list[str]]) -> Tokens:
        try:
            tokens = self._tokenize(texts)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"the tokenizer failed on column {self._names}: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.truncated += tokens.truncated
        return tokens
