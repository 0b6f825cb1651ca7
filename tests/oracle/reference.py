"""The reference, in plain pandas: the model on each row alone.

Nothing here knows how the library makes batches, and nothing is computed by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dask_infer import InputError, OutputError, PartitionError
from tests.oracle.entries import Arg
from tests.oracle.frames import Column
from tests.oracle.requests import Draw, Run

INTEGERS = ("int", "bool")


@dataclass(frozen=True)
class Failed:
    """A row that fails, and the class that "raise" raises for it."""

    error: type[Exception]


def rows(draw: Draw) -> list[Any]:
    """Return the outputs of each row by field, or `Failed`."""
    entry, count = draw.model, draw.frame.rows
    return [_row(draw, place) for place in range(0 if entry.structure else count)]


def _row(draw: Draw, place: int) -> Any:
    entry = draw.model
    try:
        values = [
            value(
                arg,
                [draw.frame.columns[name] for name in names],
                place,
                entry.reads,
                "shapes" in draw.request,
            )
            for arg, names in zip(entry.args, draw.reads, strict=True)
        ]
    except LookupError:
        return Failed(InputError)
    try:
        found = entry.alone(*values)
    except InputError:
        return Failed(InputError)
    except Exception:
        return Failed(PartitionError)
    return found if isinstance(found, dict) else {"": found}


def value(arg: Arg, columns: list[Column], place: int, reads: str, shapes: bool) -> Any:
    """Return what one argument is for one row; LookupError where it is missing."""
    found = [column.values[place] for column in columns]
    if arg.kind == "frame":
        return [
            np.nan if one is None and column.holds == "float" else one
            for one, column in zip(found, columns, strict=True)
        ]
    if columns[0].holds == "list":
        row, shaped = found[0], columns[0].is_fixed or shapes
        if row is None and not shaped:
            raise LookupError("missing, and nothing says how long")
        return [np.nan] * columns[0].width if row is None else list(row)
    for column, one in zip(columns, found, strict=True):
        fills = column.holds == "float" or (
            column.holds in INTEGERS and reads == "tensor" and not arg.integer
        )
        if one is None and not fills:
            raise LookupError("missing")
    if columns[0].holds in ("float", *INTEGERS) and not arg.integer:
        found = [np.nan if v is None else float(v) for v in found]
    return found if arg.kind == "vector" else found[0]


def errors(draw: Draw, run: Run, expected: list[Any]) -> tuple[type[Exception], ...]:
    """Return the classes of which the run must raise one; none where it must not."""
    entry = draw.model
    if entry.refused is not None:
        return (entry.refused,)
    if entry.structure:
        return (OutputError,) if run.largest >= entry.structure else ()
    if run.on_error == "raise":
        failed = {row.error for row in expected if isinstance(row, Failed)}
        return tuple(failed)
    return ()


def refused(draw: Draw, run: Run) -> bool | None:
    """Return whether the model cannot be divided as the layout says.

    None where `preprocess` may hide what the model gets, which a division has to know.
    """
    entry, layout = draw.model, run.layout
    if layout.stages == layout.shards == 1:
        return False
    stages = layout.stages if isinstance(layout.stages, int) else 2
    if "method" in draw.request or stages > entry.blocks:
        return True
    if layout.shards != 1 and not entry.has_divisible_weights:
        return True
    return None if "preprocess" in {*draw.request, *draw.functions} else False


def frame(draw: Draw, source: pd.DataFrame, run: Run, expected: list[Any]) -> Any:
    """Return (kept columns, outputs by column, rows that failed) of a run."""
    keep = draw.request.get("keep", not draw.series)
    names = list(source.columns) if keep is True else list(keep or ())
    failed = np.array([isinstance(row, Failed) for row in expected], bool)
    outputs = {
        column: [None if isinstance(row, Failed) else row[field] for row in expected]
        for field, column in draw.outputs.items()
    }
    return source[names], outputs, failed
