"""Columns of lists: how long their rows are, and whether they hold token ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dask_infer.batch.inputs.column_types import column_type_of, content_of
from dask_infer.batch.tensor.integer_ranges import misfits
from dask_infer.batch.tensor.lists import to_ragged
from dask_infer.batch.tensor.rows import Array, Positions, Rows, Shape
from dask_infer.errors import InputError


def open_ids(series: pd.Series[Any]) -> Rows:
    """Return the rows of a column of integer lists of any length, as `holds_ids` says.

    Raises
    ------
    InputError
        Where a row is missing, or holds an integer that int64 cannot.
    """
    rows = to_ragged(series)
    flat = rows.values
    wrong = misfits(flat, np.dtype(np.int64))
    if wrong is not None:
        owner = np.repeat(np.arange(len(rows)), rows.lengths)
        reason = f"holds {flat[wrong][0]!s}, which is no int64; cast it"
        raise row_error(series, owner, wrong, reason)
    return rows


def holds_ids(series: pd.Series[Any]) -> bool:
    """Whether the rows of a column that are not missing are flat lists of integers."""
    rows = _present(series)
    return rows is not None and (
        rows.values.ndim == 1
        and (rows.values.dtype.kind in "iu" or not len(rows.values))
    )


def is_ragged(series: pd.Series[Any]) -> bool:
    """Whether the lists of a column differ in length."""
    rows = _present(series)
    return rows is not None and bool((rows.lengths != rows.lengths[:1]).any())


def usual_shape(series: pd.Series[Any]) -> Shape | None:
    """Shape that most rows of a list column have; other lengths are errors."""
    rows = _present(series)
    if rows is None or not len(rows):
        return None
    _, first, counts = np.unique(rows.lengths, return_index=True, return_counts=True)
    # Of equally many, those that come first.
    usual = first[counts == counts.max()].min()
    return (int(rows.lengths[usual]), *rows.values.shape[1:])


def check_lengths(series: pd.Series[Any], usual: Shape | None) -> None:
    """Name the first row whose length is unknown, or not that of most rows.

    Other rows of the partition must not decide how long a missing one is: they may be
    in another partition.
    """
    if column_type_of(series.dtype) not in ("list", "object"):
        return
    lists = content_of(series) == "list"
    missing = series.isna().to_numpy()
    if missing.any() and (lists or (series.dtype == object and missing.all())):
        what = "how long it is" if lists else "what the column holds"
        reason = f"is missing, and nothing tells {what}; drop the missing rows, "
        advice = "or pass shapes=" if lists else "or give the column a dtype"
        raise row_error(series, slice(None), missing, reason + advice)
    if not lists or usual is None or None in usual:
        return
    lengths = to_ragged(series).lengths
    wrong = lengths != usual[0]
    if wrong.any():
        reason = (
            f"holds {lengths[wrong][0]} values where most hold {usual[0]}, and the "
            "model takes no attention_mask; pad or cut the lists in preprocess="
        )
        raise row_error(series, slice(None), wrong, reason)


def row_error(
    series: pd.Series[Any], positions: Positions, wrong: Array, reason: str
) -> InputError:
    """Return the error of the first of the rows at `positions` that is `wrong`."""
    label = series.index[positions][wrong][0]
    return InputError(f'column "{series.name}": row {label} {reason}')


def _present(series: pd.Series[Any]) -> Rows | None:
    """Return the lists that are not missing, end to end; None of other columns."""
    if content_of(series) != "list":
        return None
    try:
        return to_ragged(series[series.notna().to_numpy()])
    except InputError:
        return None
