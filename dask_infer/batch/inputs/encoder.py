"""Rows to batches: the arguments that a replica is called with.

Built once for each partition, in the thread of its task. Columns are opened and texts
tokenised once; what is left for a batch is a copy of its rows. With `preprocess` there
is nothing to open before the user's function has seen the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from dask_infer.batch.inputs.arguments import (
    Call,
    EncodeOptions,
    Interface,
    Lengths,
    TextArgument,
    count_rows,
    open_argument,
)
from dask_infer.batch.inputs.column_types import column_type_of
from dask_infer.batch.inputs.integer_ranges import misfits
from dask_infer.batch.inputs.plain_columns import COPY_ON_WRITE, plain_frame
from dask_infer.batch.inputs.resolve_inputs import (
    as_columns,
    resolve_inputs,
    with_integers,
    with_lists,
)
from dask_infer.batch.text.tokenize import Rows, Tokens, padding_side
from dask_infer.errors import InputError
from dask_infer.spec import Inputs
from dask_infer.spec.token_rules import TokenRules


@dataclass(frozen=True)
class Batch(Call):
    """The arguments of one forward. Tensors are on the CPU, in memory of their own."""

    #: Rows of the batch.
    rows: int = 0
    _frame: Callable[[], pd.DataFrame] = field(default=pd.DataFrame, repr=False)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows as `preprocess` and `postprocess` see them; built when asked for."""
        return self._frame()

    @property
    def nbytes(self) -> int:
        """Bytes of the arguments that are tensors or arrays."""
        values = (*self.args, *self.kwargs.values())
        known = (getattr(value, "nbytes", 0) for value in values)
        return sum(size for size in known if isinstance(size, int))

    def shapes(self) -> str:
        """Dtypes and shapes of the arguments, for messages."""
        named = [*((None, value) for value in self.args), *self.kwargs.items()]
        return ", ".join(_shape(name, value) for name, value in named) or "none"


class Encoder:
    """The batches of one partition.

    Parameters
    ----------
    frame
        The partition.
    inputs
        Which columns become which arguments.
    interface
        What the model options: ``"tensor"``, ``"numpy"`` or ``"frame"``.
    floating
        Dtype of floating inputs; None is torch's default.
    preprocess
        The user's function, called with the rows of each batch. What it raises goes
        through unchanged.
    tokenizer
        A Hugging Face tokenizer, or a callable that takes a list of str and returns a
        dict.
    rules
        How the model takes tokens. Of the tokenizer's outputs only what it accepts is
        passed, and lists of integers of any length are only padded for a model that
        names an ``attention_mask``.
    max_length
        Most tokens the model takes, where its tokenizer may not tell.
    dtypes
        Names and dtypes of its arguments, in order, of a model that casts them.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        inputs: Inputs,
        *,
        interface: Interface,
        floating: torch.dtype | None = None,
        preprocess: Callable[[pd.DataFrame], Any] | None = None,
        tokenizer: Callable[..., Any] | None = None,
        rules: TokenRules | None = None,
        max_length: int | None = None,
        dtypes: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.inputs = inputs
        self._frame = frame
        self._preprocess = preprocess
        self._options = EncodeOptions(
            interface,
            floating or torch.get_default_dtype(),
            tokenizer if inputs.tokenized else None,
            rules or TokenRules(),
            max_length,
            dtypes,
        )
        self._opened = None if preprocess else FrameReader(frame, inputs, self._options)
        self._resolved: tuple[object, Inputs] | None = None
        self._truncated = 0
        #: Told the bytes of a row's tensors with each batch that is made.
        self.on_row_bytes: Callable[[float], None] | None = None

    @property
    def lengths(self) -> Lengths | None:
        """Tokens that each row costs, to plan with; None where rows have no length."""
        return None if self._opened is None else self._opened.lengths

    @property
    def equal_lengths(self) -> bool:
        """Whether a forward takes rows of equal length only: no mask hides padding."""
        unmasked = self.tokens is not None and not self.tokens.masked
        return unmasked or self._options.rules.equal_lengths

    @property
    def tokens(self) -> Tokens | None:
        """The tokens of the partition's texts; None where there are none."""
        text = None if self._opened is None else self._opened.text
        return None if text is None else text.tokens

    @property
    def truncated(self) -> int:
        """Texts cut at the largest length so far."""
        text = None if self._opened is None else self._opened.text
        return self._truncated if text is None else text.truncated

    @property
    def signature(self) -> tuple[object, ...]:
        """What a row looks like: partitions that share it share a batch size."""
        if self._opened is None:
            return ("preprocess", self.inputs)
        return tuple(part.signature for part in self._opened.parts)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of the tensors of one row; 0 where nobody can tell beforehand."""
        parts = [] if self._opened is None else self._opened.parts
        return sum(part.bytes_per_row for part in parts)

    def __repr__(self) -> str:
        count = len(self.inputs.arguments)
        return f"<Encoder {len(self._frame)} rows, {count} arguments>"

    def batch(self, rows: Rows) -> Batch:
        """Return the arguments for `rows`, a slice or positions in the partition.

        Raises
        ------
        InputError
            Where a value cannot become what the model options; names column and row.
        """
        batch = self._made(rows, count_rows(rows, len(self._frame)))
        self._refuse_misfits(batch, rows)
        if self.on_row_bytes is not None and batch.rows:
            self.on_row_bytes(batch.nbytes / batch.rows)
        return batch

    def unpadded(self, rows: Rows, batch: Batch) -> Sequence[Rows]:
        """Return the rows of a batch by length, where padding would change outputs.

        Consecutive rows stay consecutive.
        """
        known = self.lengths
        lengths = batch.lengths if known is None else known[rows]
        masked = "attention_mask" in batch.kwargs and not self.equal_lengths
        if lengths is None or masked:
            return [rows]
        cuts = np.flatnonzero(np.diff(np.maximum(lengths, 1))) + 1
        if not isinstance(rows, slice):
            return np.split(rows, cuts)
        places = [rows.start, *(rows.start + cuts).tolist(), rows.stop]
        return [slice(*ends) for ends in itertools.pairwise(places)]

    def _made(self, rows: Rows, count: int) -> Batch:
        if self._opened is not None:
            call = self._opened.call(rows)
            return _batch(call, count, lambda: self._seen.iloc[rows])
        seen = self._seen.iloc[rows]
        # A copy: whatever preprocess does to it, postprocess sees the rows.
        given = self._given.iloc[rows].copy(deep=not COPY_ON_WRITE)
        return _batch(self._preprocessed(given), count, lambda: seen)

    def _refuse_misfits(self, batch: Batch, rows: Rows) -> None:
        """Name the row whose integers the model's own dtype cannot hold."""
        names = [name for name, _ in self._options.dtypes]
        given = {**dict(zip(names, batch.args, strict=False)), **batch.kwargs}
        for name, dtype in self._options.dtypes:
            values = np.asarray(given.get(name))
            wrong = misfits(values, np.dtype(dtype))
            if wrong is None:
                continue
            row, *inner = np.argwhere(wrong)[0]
            raise InputError(
                f"{self._source(names.index(name), name, inner)}: row "
                f"{self._frame.index[rows][row]} holds {values[wrong][0]!s}, and the "
                f'model options {dtype} in "{name}"; cast it, or export the model anew'
            )

    def _source(self, place: int, name: str, inner: Sequence[Any]) -> str:
        """Return the column that an argument was made of, where it was one."""
        arguments = self.inputs.arguments
        named = [a for a in arguments if a.keyword == name]
        found = named or [a for a in arguments if a.keyword is None][place : place + 1]
        if self._opened is None or not found or found[0].content == "text":
            return f'input "{name}"'
        columns = found[0].columns
        return f'column "{columns[inner[0] if found[0].stacked else 0]}"'

    @cached_property
    def _seen(self) -> pd.DataFrame:
        return self._frame[list(self.inputs.columns)]

    @cached_property
    def _given(self) -> pd.DataFrame:
        """What `preprocess` sees: for an estimator what plain pandas has."""
        if self._options.interface != "frame":
            return self._seen
        return plain_frame(self._seen, none=self.inputs.none)

    def _preprocessed(self, seen: pd.DataFrame) -> Call:
        assert self._preprocess is not None
        given = self._preprocess(seen)
        if self._options.interface == "frame":
            given = picked(self.inputs, given)
            return as_given(given, len(seen), self._options)
        if isinstance(given, pd.Series):
            given = given.to_frame()
        if not isinstance(given, pd.DataFrame):
            return as_given(given, len(seen), self._options)
        _check_count(len(given), len(seen))
        opened = FrameReader(given, self._resolve(given), self._options)
        call = opened.call(slice(None))
        if opened.text is not None:
            self._truncated += opened.text.truncated
        return call

    def _resolve(self, given: pd.DataFrame) -> Inputs:
        key = (tuple(given.columns), tuple(given.dtypes))
        if self._resolved is None or self._resolved[0] != key:
            again = resolve_again(self.inputs, given, self._options.interface)
            self._resolved = key, again
        return self._resolved[1]


def _batch(call: Call, rows: int, frame: Callable[[], pd.DataFrame]) -> Batch:
    padding = (call.lengths, call.padded, call.side)
    return Batch(call.args, call.kwargs, *padding, rows, frame)


def resolve_again(inputs: Inputs, given: pd.DataFrame, interface: Interface) -> Inputs:
    """Return the inputs of a frame that `preprocess` returned.

    The columns that the user named if they are all there; else all columns.
    """
    wanted = [name for argument in inputs.arguments for name in argument.columns]
    keep = inputs.named and all(name in given.columns for name in wanted)
    columns = as_columns(inputs) if keep else None
    cast = any(argument.dtype is not None for argument in inputs.arguments)
    meta = given.iloc[:0]
    resolved = resolve_inputs(
        meta,
        columns,
        interface_hint="tensor" if cast else interface,
        shapes=_known_shapes(inputs, meta),
        tokenizer=inputs.tokenized,
    )
    integers = any(a.stacked and a.dtype == "int64" for a in inputs.arguments)
    resolved = with_integers(resolved, meta, True) if integers else resolved
    # What the model was asked about its lists holds for those that took their place.
    known = {(a.keyword, a.columns): a.dtype for a in inputs.arguments if not a.stacked}
    asked = {
        place: dtype
        for place, a in enumerate(resolved.arguments)
        for dtype in [known.get((a.keyword, a.columns))]
        if dtype is not None and a.shape != () and a.dtype in (None, "int64")
    }
    return with_lists(resolved, asked)


def picked(inputs: Inputs, given: Any) -> Any:
    """Return what an estimator reads of what `preprocess` returned.

    Of a frame the columns that the user named or it was fitted on, if they are all
    there; else all of them. What it is stays what it is, but an estimator of texts
    gets the one column.
    """
    (argument,) = inputs.arguments
    wanted = list(argument.columns)
    if not isinstance(given, pd.DataFrame):
        return given
    # All columns of the frame are no choice: one that preprocess adds belongs to them.
    chosen = inputs.named or set(wanted) != set(inputs.columns)
    if chosen and all(name in given.columns for name in wanted):
        given = given[wanted]
    if argument.content != "text":
        return given
    if given.shape[1] != 1:
        raise InputError(
            f"preprocess returned a frame of {given.shape[1]} columns, and the "
            "estimator options one text a row; return a Series"
        )
    return given.iloc[:, 0]


def _known_shapes(inputs: Inputs, meta: pd.DataFrame) -> dict[str, Any]:
    """Return the row shapes told at the call, of columns that may still hold lists."""
    return {
        argument.columns[0]: argument.shape
        for argument in inputs.arguments
        if argument.shape
        and None not in argument.shape
        and argument.columns[0] in meta.columns
        and column_type_of(meta[argument.columns[0]].dtype) in ("list", "object")
    }


class FrameReader:
    """The columns of a frame, opened once and cut into batches."""

    def __init__(
        self, frame: pd.DataFrame, inputs: Inputs, options: EncodeOptions
    ) -> None:
        arguments = inputs.arguments
        self.parts = [
            open_argument(frame, argument, options, none=inputs.none, place=place)
            for place, argument in enumerate(arguments)
        ]
        texts = (part for part in self.parts if isinstance(part, TextArgument))
        #: The argument that goes through the tokenizer.
        self.text = next(texts, None)
        self._keywords = [argument.keyword for argument in arguments]

    @property
    def lengths(self) -> Lengths | None:
        """Tokens that each row costs."""
        known = (part.lengths for part in self.parts)
        return next((lengths for lengths in known if lengths is not None), None)

    def call(self, rows: Rows) -> Call:
        """Return the arguments for `rows`."""
        # What is beyond a dtype's range is infinite, as in torch, without a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            calls = [part.call(rows) for part in self.parts]
        args: list[Any] = []
        made: dict[str, Any] = {}
        named: dict[str, Any] = {}
        for keyword, call in zip(self._keywords, calls, strict=True):
            if keyword is not None and call.args:
                named[keyword] = call.args[0]
            else:
                args.extend(call.args)
            made = call.kwargs | made
        padded = next((call for call in calls if call.padded), Call())
        # A mask that the user passes wins over the one made here.
        padding = (padded.lengths, padded.padded, padded.side)
        return Call(tuple(args), made | named, *padding)


def as_given(given: Any, rows: int, options: EncodeOptions) -> Call:
    """Return the call of tensors that `preprocess` returned: they go in as they are.

    Raises
    ------
    InputError
        Where they have another number of rows, or are no tensors.
    """
    if isinstance(given, Mapping):
        named = {
            str(key): _as_given(value, rows, options) for key, value in given.items()
        }
        return _with_lengths(named)
    values = given if isinstance(given, tuple) else (given,)
    return Call(tuple(_as_given(value, rows, options) for value in values))


def _with_lengths(kwargs: dict[str, Any]) -> Call:
    mask = kwargs.get("attention_mask")
    if mask is None or getattr(mask, "ndim", 0) != 2:
        return Call((), kwargs)
    real = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask) != 0
    side = padding_side(real)
    if side is None:
        return Call((), kwargs)
    return Call((), kwargs, real.sum(axis=1), mask.shape[1], side)


def _as_given(value: Any, rows: int, options: EncodeOptions) -> Any:
    if value is None:
        raise InputError(
            "preprocess returned None; return a DataFrame, a tensor, or a tuple or "
            "dict of tensors"
        )
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        value = torch.stack(value)
    if isinstance(value, pd.Series | list) and options.interface == "tensor":
        value = np.asarray(value)
    if np.ndim(value) or isinstance(value, list):
        _check_count(len(value), rows)
    if isinstance(value, np.ndarray) and options.interface == "tensor":
        return _tensor(value, options)
    return _owned(value)


def _owned(value: Any) -> Any:
    """Copy what `preprocess` may write its next batch into."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray | pd.DataFrame | pd.Series):
        return value.copy()
    if isinstance(value, list):
        return [_owned(inner) for inner in value]
    return value.copy() if hasattr(value, "toarray") else value  # a sparse matrix


def _tensor(values: np.ndarray[Any, Any], options: EncodeOptions) -> torch.Tensor:
    if values.dtype.kind not in "fiub":
        raise InputError(
            f"preprocess returned an array of {values.dtype}, which cannot become a "
            "tensor; return numbers"
        )
    tensor = torch.from_numpy(np.array(values, order="C"))
    return tensor.to(options.floating) if tensor.is_floating_point() else tensor


def _check_count(got: int, expected: int) -> None:
    if got != expected:
        raise InputError(
            f"preprocess returned {got} rows for {expected}; return one row for each "
            "row of the frame, in the same order"
        )


def _shape(name: str | None, value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        texts = isinstance(value, list)
        told = f"{len(value)} texts" if texts else type(value).__name__
    else:
        dtype = str(getattr(value, "dtype", "frame")).removeprefix("torch.")
        told = f"{dtype} {tuple(shape)}"
    return told if name is None else f"{name}={told}"
