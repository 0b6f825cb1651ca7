"""What each column is made of: one rule for every batch, which the promise decides.

Names, positions and types of an output's structure count, and no length ever does:

- A mapping (dict, dataclass, named tuple, frame) is read by name.
- A tuple holds a column an entry.
- A list holds a row an entry, unless the promise knows it as a list of fields. A row
  may be a mapping or a tuple in its turn; what some mappings leave out is missing.
- One value is the only column, or has all columns side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from dask_infer.batch.outputs.fields import Fields, all_fields, is_column, stacked
from dask_infer.errors import OutputError
from dask_infer.spec import OutputColumn, Outputs


def pick(output: Any, outputs: Outputs) -> Fields:
    """Return the value of each column by name, or ``[(None, value)]`` of all of them.

    Parameters
    ----------
    output
        What the model or `postprocess` returned for one batch.
    outputs
        The promised columns.

    Raises
    ------
    OutputError
        If the columns are not found in the output.
    """
    plain = type(output) is np.ndarray and not output.dtype.names
    if plain or isinstance(output, torch.Tensor):
        return [(None, output)]
    columns = outputs.columns
    rows = output if isinstance(output, list) and not outputs.listed else []
    present = [row for row in rows if row is not None]
    if present and all(isinstance(row, Mapping) for row in present):
        values = [[_value(row, column, outputs) for row in rows] for column in columns]
        return _by_column(values, outputs)
    found = dict(all_fields(output, listed=outputs.listed))
    for keys in ([column.field for column in columns], outputs.names):
        if all(_is_read(found.get(key)) for key in keys):
            if len({*keys}) == 1:
                return _together(found[keys[0]], outputs)
            return _by_column([found[key] for key in keys], outputs)
    held = {
        key: value
        for key, value in found.items()
        if is_column(value) or (key is None and _is_read(value))
    }
    nameless = not any(isinstance(key, str) for key in held)
    if len(held) == 1 and (nameless or outputs.declared):
        return _together(next(iter(held.values())), outputs)
    if nameless:
        for values in ([*found.values()], [*held.values()]):
            if len(values) == len(columns) and all(map(_is_read, values)):
                return _by_column(values, outputs)
    raise _not_found(columns, held, output)


def _value(row: Any, column: OutputColumn, outputs: Outputs) -> Any:
    """Return what a mapping holds of a column; None where it leaves it out."""
    alone = len(outputs.columns) == 1
    arrow: Any = getattr(column.dtype if alone else None, "pyarrow_dtype", pa.null())
    if row is None or pa.types.is_map(arrow):
        return row
    is_struct = pa.types.is_struct(arrow)
    for key in (column.field, column.name):
        if key in row:
            return row if is_struct and key in arrow.names else row[key]
    objects = alone and column.dtype == "object" and not column.shape
    if is_struct or objects:
        return row
    if alone and outputs.declared and column.field is None and len(row) == 1:
        return next(iter(row.values()))
    keys = {key for other in outputs.columns for key in (other.field, other.name)}
    if row and keys.isdisjoint(row):
        raise _not_found(outputs.columns, dict(row), row)
    return None


def _is_read(value: Any) -> bool:
    """Whether a value that the promise names is a column, or one row's value."""
    if isinstance(value, list) or is_column(value):
        return True
    return value is not None and bool(pd.api.types.is_scalar(value))


def _together(value: Any, outputs: Outputs) -> Fields:
    """Return one value that all columns are made of; rows of tuples turned around."""
    width = len(outputs.columns)
    if width == 1:
        return [(None, _rows(value, outputs.columns[0], outputs))]
    if not isinstance(value, list) or not any(
        isinstance(row, tuple | list) or row is None for row in value
    ):
        return [(None, stacked(value))]
    if any(row is not None and len(row) != width for row in value):
        lengths = sorted({len(row) for row in value if row is not None})
        raise OutputError(
            f"{width} columns are promised, the model returned rows of "
            f"{' or '.join(map(str, lengths))} values; return {width} values a row, or "
            "a tuple of columns"
        )
    turned = [
        [None if row is None else row[place] for row in value] for place in range(width)
    ]
    return _by_column(turned, outputs)


def _by_column(values: list[Any], outputs: Outputs) -> Fields:
    return [
        (column.name, _rows(value, column, outputs))
        for column, value in zip(outputs.columns, values, strict=True)
    ]


def _rows(value: Any, column: OutputColumn, outputs: Outputs) -> Any:
    """Return a column's value; its rows in one tensor, unless it keeps them apart."""
    apart = column.dtype == "object" or isinstance(column.dtype, pd.ArrowDtype)
    ragged = outputs.declared and column.shape[:1] == (None,)
    return value if apart or ragged else stacked(value)


def _not_found(
    columns: tuple[OutputColumn, ...], held: dict[Any, Any], output: Any
) -> OutputError:
    wanted = ", ".join(
        f'"{column.name}"' if column.field is None else repr(column.field)
        for column in columns
    )
    if None in held:
        found = "one array without a name"
    elif held:
        found = "arrays in " + ", ".join(map(repr, held))
    else:
        return OutputError(
            f"{wanted} promised, the model returned no array with an entry a row (a "
            f"{type(output).__name__}); return one value for each row, or a tuple of "
            "columns, and name what comes by meta="
        )
    return OutputError(
        f"{wanted} promised, the model returned {found} (a {type(output).__name__}); "
        'pick fields by output={"field": "name"}, or name what comes by meta='
    )
