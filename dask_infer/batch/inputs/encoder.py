"""Rows to batches: the arguments that a replica is called with.

Built once for each partition, in the thread of its task. Columns are opened and texts
tokenized once; what is left for a batch is a copy of its rows. With `preprocess` there
is nothing to open before the user's function has seen the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from dask_infer.batch.inputs.arguments import open_argument
from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.inputs.encode_options import ArgumentReader, EncodeOptions
from dask_infer.batch.inputs.plain_columns import COPY_ON_WRITE, plain_frame
from dask_infer.batch.inputs.preprocessed import (
    add_tensors,
    check_count,
    resolve_again,
    table_of,
)
from dask_infer.batch.tensor.integer_ranges import misfits
from dask_infer.batch.tensor.rows import Positions
from dask_infer.errors import InputError
from dask_infer.spec import Inputs


class Encoder:
    """The batches of one partition.

    Parameters
    ----------
    frame
        The partition.
    inputs
        Which columns become which arguments.
    options
        How they become what the model reads.
    preprocess
        The user's function, called with the rows of each batch. What it raises goes
        through unchanged.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        inputs: Inputs,
        options: EncodeOptions,
        preprocess: Callable[[pd.DataFrame], Any] | None = None,
    ) -> None:
        self.inputs = inputs
        self._frame = frame
        self._preprocess = preprocess
        self._options = options
        #: Arguments opened for all batches; none with `preprocess`.
        self._arguments = [] if preprocess else self._opened(frame, inputs)
        known = (argument.lengths for argument in self._arguments)
        #: Tokens that each row costs, to plan with; None where rows have no length.
        self.lengths = next((lengths for lengths in known if lengths is not None), None)
        masked = all(argument.masked for argument in self._arguments)
        #: Whether a forward takes rows of equal length only: no mask hides padding.
        self.equal_lengths = not masked or self._options.rules.equal_lengths
        self._resolved: tuple[object, Inputs] | None = None
        self._truncated = 0
        #: Called with the bytes of a row's tensors after each batch.
        self.on_row_bytes: Callable[[float], None] | None = None

    @property
    def truncated(self) -> int:
        """Texts cut at the largest length so far."""
        return self._truncated + sum(a.truncated for a in self._arguments)

    @property
    def signature(self) -> tuple[object, ...]:
        """What a row looks like: partitions that share it share a batch size."""
        if self._preprocess is not None:
            return ("preprocess", self.inputs)
        return tuple(argument.signature for argument in self._arguments)

    @property
    def bytes_per_row(self) -> int:
        """Bytes of the tensors of one row; 0 where they are not known beforehand."""
        return sum(argument.bytes_per_row for argument in self._arguments)

    def __repr__(self) -> str:
        count = len(self.inputs.arguments)
        return f"<Encoder {len(self._frame)} rows, {count} arguments>"

    def batch(self, rows: Positions) -> Batch:
        """Return the arguments for `rows`, a slice or positions in the partition.

        Raises
        ------
        InputError
            Where a value cannot become what the model reads; names column and row.
        """
        n = len(self._frame)
        count = len(range(n)[rows]) if isinstance(rows, slice) else len(rows)
        batch = Batch(rows=count, _frame=lambda: self._seen.iloc[rows])
        if self._preprocess is None:
            for argument in self._arguments:
                argument.add_to(batch, rows)
        else:
            # A copy: whatever preprocess does to it, postprocess sees the rows.
            given = self._given.iloc[rows].copy(deep=not COPY_ON_WRITE)
            self._add_preprocessed(batch, self._preprocess(given))
        if self._options.dtypes:
            self._check_integers(batch, rows)
        if self.on_row_bytes is not None and count:
            self.on_row_bytes(batch.nbytes / count)
        return batch

    def unpadded(self, rows: Positions, batch: Batch) -> Sequence[Positions]:
        """Return the rows of a batch by length, where padding would change outputs.

        Consecutive rows stay consecutive.
        """
        known = self.lengths
        lengths = batch.padding.lengths if known is None else known[rows]
        if lengths is None:
            return [rows]
        if "attention_mask" in batch.kwargs and not self.equal_lengths:
            return [rows]
        cuts = np.flatnonzero(np.diff(np.maximum(lengths, 1))) + 1
        if not isinstance(rows, slice):
            return np.split(rows, cuts)
        places = [rows.start, *(rows.start + cuts).tolist(), rows.stop]
        return [slice(*ends) for ends in itertools.pairwise(places)]

    def _opened(self, frame: pd.DataFrame, inputs: Inputs) -> list[ArgumentReader]:
        return [
            open_argument(frame, argument, self._options, none=inputs.none, place=place)
            for place, argument in enumerate(inputs.arguments)
        ]

    def _check_integers(self, batch: Batch, rows: Positions) -> None:
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
                f'model reads {dtype} in "{name}"; cast it, or export the model anew'
            )

    def _source(self, place: int, name: str, inner: Sequence[Any]) -> str:
        """Return the column that an argument was made of, where it was one."""
        arguments = self.inputs.arguments
        named = [a for a in arguments if a.keyword == name]
        found = named or [a for a in arguments if a.keyword is None][place : place + 1]
        if self._preprocess or not found or found[0].content == "text":
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

    def _add_preprocessed(self, batch: Batch, given: Any) -> None:
        """Add what `preprocess` returned: columns of a frame, or tensors."""
        if self._options.interface == "frame":
            add_tensors(batch, table_of(self.inputs, given), self._options)
            return
        if isinstance(given, pd.Series):
            given = given.to_frame()
        if not isinstance(given, pd.DataFrame):
            add_tensors(batch, given, self._options)
            return
        check_count(len(given), batch.rows)
        arguments = self._opened(given, self._resolve(given))
        for argument in arguments:
            argument.add_to(batch, slice(None))
        self._truncated += sum(argument.truncated for argument in arguments)

    def _resolve(self, given: pd.DataFrame) -> Inputs:
        key = (tuple(given.columns), tuple(given.dtypes))
        if self._resolved is None or self._resolved[0] != key:
            again = resolve_again(self.inputs, given, self._options.interface)
            self._resolved = key, again
        return self._resolved[1]
