"""Batches' outputs put together into columns, in the order of the partition's rows.

Runs on the worker, in the thread of the partition. Batches may come in any order; each
is written at its rows into memory allocated once, so that nothing is sorted or joined
afterwards, except rows that differ in length.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dask_infer.batch.fields import fields, is_tensor
from dask_infer.batch.returned import to_array
from dask_infer.batch.sinks import Columns, Padding, Sink, build_sink
from dask_infer.errors import OutputError
from dask_infer.spec import OutputColumn, Outputs

Positions: TypeAlias = slice | npt.NDArray[Any]


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
    side
        Where the tokenizer pads: ``"right"`` or ``"left"``.
    """

    outputs: Outputs
    #: Rows of the partition.
    n: int

    def __init__(
        self, outputs: Outputs, n: int, *, nullable: bool = False, side: str = "right"
    ) -> None:
        self.outputs = outputs
        self.n = n
        self._nullable = nullable
        self._side = side
        self._sinks: list[Sink] = [
            build_sink(column, n, nullable=nullable, cast=outputs.declared)
            for column in outputs.columns
        ]
        self._alone = len(self._sinks) == 1 and outputs.columns[0].index is None
        self._missing: npt.NDArray[np.bool_] | None = None
        self._filled = 0

    def __repr__(self) -> str:
        columns = len(self._sinks)
        return f"<Assembler {self._filled}/{self.n} rows, {columns} columns>"

    def add(
        self,
        rows: Positions,
        output: Any,
        lengths: npt.NDArray[Any] | None = None,
        padded: int | None = None,
    ) -> None:
        """Write what the model returned for one batch.

        Parameters
        ----------
        rows
            Where the batch's rows stand in the partition.
        output
            What the model or `postprocess` returned, its tensors on the CPU.
        lengths, padded
            Real length of each row, and the length of the axis that pads them.

        Raises
        ------
        OutputError
            If rows, fields, dtypes or shapes are not those promised. Then nothing of
            the batch counts as written.
        """
        count = _count(rows, self.n)
        padding = Padding(lengths, padded, self._side)
        values = self._values(output)
        for value in values:
            _check_rows(value, count)
        for sink, value in zip(self._sinks, values, strict=True):
            sink.put(rows, count, value, padding)
        self._filled += count

    def missing(self, rows: Positions) -> None:
        """Make these rows missing in every column; needs ``nullable=True``."""
        if not self._nullable:
            raise ValueError("rows can only be missing in nullable columns")
        if self._missing is None:
            self._missing = np.zeros(self.n, bool)
        self._missing[rows] = True
        self._filled += _count(rows, self.n)

    def columns(self) -> Columns:
        """Return the finished columns by name: arrays of `n` values for a frame."""
        if self._filled != self.n:
            raise RuntimeError(f"{self._filled} of {self.n} rows have an output")
        return {
            column.name: sink.finish(self._missing)
            for column, sink in zip(self.outputs.columns, self._sinks, strict=True)
        }

    def _values(self, output: Any) -> list[Any]:
        """Return the value of each column, whatever structure holds them."""
        if self._alone and is_tensor(output) and output.dim():
            return [output]
        found = dict(fields(output))
        columns = self.outputs.columns
        if all(column.field in found for column in columns):
            return _picked(columns, found)
        if all(column.name in found for column in columns):
            return [found[column.name] for column in columns]
        # Structures may differ where names do not matter, or `meta` gave them.
        nameless = not any(isinstance(key, str) for key in found)
        if nameless and len(found) == len(columns):
            return list(found.values())
        if len(found) == 1 and (nameless or self.outputs.declared):
            (value,) = found.values()
            return [value] if len(columns) == 1 else _spread(value, len(columns))
        raise _not_found(columns, found, output)


def _count(rows: Positions, n: int) -> int:
    if isinstance(rows, slice):
        return len(range(*rows.indices(n)))
    return len(rows)


def _check_rows(value: Any, count: int) -> None:
    # `len` of a sparse matrix raises
    found = value.shape[0] if hasattr(value, "shape") else len(value)
    if found != count:
        raise OutputError(
            f"the model returned {found} rows for a batch of {count} rows; it must "
            "return one row for each that it is given, see to it in the model or in "
            "postprocess="
        )


def _picked(columns: tuple[OutputColumn, ...], found: dict[Any, Any]) -> list[Any]:
    """Return each column's field, or its slice of the ``(n, k)`` field."""
    slices: dict[Any, list[Any]] = {}
    values = []
    for column in columns:
        key, value = column.field, found[column.field]
        if column.index is None:
            values.append(value)
            continue
        if key not in slices:
            width = sum(other.field == key for other in columns)
            slices[key] = _spread(value, width)
        values.append(slices[key][column.index])
    return values


def _spread(value: Any, width: int) -> list[Any]:
    """Return the columns of an ``(n, k)`` array."""
    array = to_array(value)
    if array.ndim == 2 and array.shape[1] == width:
        return [array[:, place] for place in range(width)]
    raise OutputError(
        f"{width} columns are promised, the model returned an array of shape "
        f"{array.shape}; return (n, {width}), or pass output= and meta= for what it "
        "returns"
    )


def _not_found(
    columns: tuple[OutputColumn, ...], found: dict[Any, Any], output: Any
) -> OutputError:
    wanted = ", ".join(
        f'"{column.name}"' if column.field is None else repr(column.field)
        for column in columns
    )
    if None in found:
        held = "one array without a name"
    elif found:
        held = "arrays in " + ", ".join(map(repr, found))
    else:
        held = "no array with an entry a row"
    # A plain dict is what the caller makes of the model's own structure.
    made_of = "" if type(output) is dict else f" (a {type(output).__name__})"
    return OutputError(
        f"{wanted} promised, the model returned {held}{made_of}; "
        'pick fields by output={"field": "name"}, or name what comes by meta='
    )
