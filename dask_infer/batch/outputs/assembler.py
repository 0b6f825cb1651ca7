"""Batches' outputs put together into columns, in the order of the partition's rows.

Runs on the worker, in the thread of the partition. Batches may come in any order; each
is written at its rows into memory allocated once, so that nothing is sorted or joined
afterwards, except rows that differ in length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dask_infer.batch.outputs.column_writers import (
    Columns,
    ColumnWriter,
    build_writer,
)
from dask_infer.batch.outputs.convert import to_array, unboxed
from dask_infer.batch.tensor.rows import Positions
from dask_infer.batch.text.batch_padding import NOT_PADDED, Padding
from dask_infer.errors import OutputError
from dask_infer.spec import Outputs


class Assembler:
    """The output columns of one partition while its batches come in.

    Parameters
    ----------
    outputs
        The promised columns.
    n
        Rows of the partition.
    nullable
        Whole numbers and booleans take dtypes that can miss, as `missing` needs.
    """

    outputs: Outputs
    #: Rows of the partition.
    n: int

    def __init__(self, outputs: Outputs, n: int, *, nullable: bool = False) -> None:
        self.outputs = outputs
        self.n = n
        self._nullable = nullable
        self._writers: list[ColumnWriter] = [
            build_writer(column, n, nullable=nullable, cast=outputs.declared)
            for column in outputs.columns
        ]
        #: Axes of the values whose second axis is unknown, by place.
        self._ranks: dict[int, int] = {}
        self._missing: npt.NDArray[np.bool_] | None = None
        self._filled = 0

    def __repr__(self) -> str:
        columns = len(self._writers)
        return f"<Assembler {self._filled}/{self.n} rows, {columns} columns>"

    def add(
        self, rows: Positions, picked: dict[Any, Any], padding: Padding = NOT_PADDED
    ) -> None:
        """Write what the model returned for one batch.

        Parameters
        ----------
        rows
            Where the batch's rows are in the partition.
        picked
            What `pick` found in the output, tensors on the CPU.
        padding
            How the rows were padded.

        Raises
        ------
        OutputError
            If rows, fields, dtypes or shapes are not those promised. Then nothing of
            the batch counts as written.
        """
        count = self._count(rows)
        values = self._values(picked, count)
        for writer, value in zip(self._writers, values, strict=True):
            writer.write(rows, count, value, padding)
        self._filled += count

    def missing(self, rows: Positions) -> None:
        """Make these rows missing in every column; needs ``nullable=True``."""
        if not self._nullable:
            raise ValueError("rows can only be missing in nullable columns")
        if self._missing is None:
            self._missing = np.zeros(self.n, bool)
        self._missing[rows] = True
        self._filled += self._count(rows)

    def _count(self, rows: Positions) -> int:
        return len(range(self.n)[rows]) if isinstance(rows, slice) else len(rows)

    def columns(self) -> Columns:
        """Return the finished columns by name: arrays of `n` values for a frame."""
        if self._filled != self.n:
            raise RuntimeError(f"{self._filled} of {self.n} rows have an output")
        return {
            column.name: writer.result(self._missing)
            for column, writer in zip(self.outputs.columns, self._writers, strict=True)
        }

    def is_axis_unknown(self, picked: dict[Any, Any], padding: Padding) -> bool:
        """Whether an axis as long as the padded one may still be another axis.

        Only of a column declared by ``meta=``: of an inferred one it is known.
        `learn_axis` sets the answer, for all batches.
        """
        if padding.lengths is None or not padding.cuts:
            return False
        unknown = [
            place for place, w in enumerate(self._writers) if w.token_axis is None
        ]
        if not unknown:
            return False
        values = self._values(picked, len(padding.lengths))
        self._ranks = {
            place: np.ndim(values[place])
            for place in unknown
            if padding.covers(values[place])
        }
        return bool(self._ranks)

    def learn_axis(self, picked: dict[Any, Any] | None, width: int) -> None:
        """Learn from a row of that batch that was run alone, padded to `width` tokens.

        An axis is the tokens' if it is as long as the row is then; none is where the
        row fails alone.
        """
        values = [] if picked is None else self._values(picked, 1)
        for place, rank in self._ranks.items():
            found = None
            if picked is not None:
                shape = tuple(getattr(values[place], "shape", ()))
                missing = rank - len(shape)  # axes of length 1 that the model squeezed
                found = shape[1 - missing : 2 - missing] if missing < 2 else (1,)
            self._writers[place].token_axis = found == (width,)

    def _values(self, picked: dict[Any, Any], count: int) -> list[Any]:
        """Return the value of each column."""
        columns = self.outputs.columns
        if None not in picked:
            return [picked[column.name] for column in columns]
        if len(columns) == 1 and columns[0].index is None:
            return [picked[None]]
        return _spread(picked[None], len(columns), count)


def _spread(value: Any, width: int, count: int) -> list[Any]:
    """Return the columns of an ``(n, k)`` array."""
    array = to_array(value)
    if array.ndim < 2:
        array = unboxed(array)
    if count == 1 and array.shape == (width,):
        array = array.reshape(1, width)
    if array.ndim == 2 and array.shape[1] == width:
        return [array[:, place] for place in range(width)]
    raise OutputError(
        f"{width} columns are promised, the model returned an array of shape "
        f"{array.shape}; return (n, {width}), or pass output= and meta= for what it "
        "returns (a list has a row an entry, a tuple a column)"
    )
