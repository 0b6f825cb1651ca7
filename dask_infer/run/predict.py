"""A partition's rows through one model, or through several that are combined.

Models of this process run one after the other, in the thread of the partition's task.
Models on other workers are fed by threads beside it, all at once. Torch is imported
with the first row, not before.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_infer.batch.outputs.column_dtypes import STRING, output_meta, pandas_dtype
from dask_infer.errors import naming_model
from dask_infer.metrics.recorder import add, meter
from dask_infer.metrics.sums import Label
from dask_infer.replica.partition_counters import count_idle, recording_partition
from dask_infer.spec import ERROR_COLUMN, AnyJob, Job, Tower, TowersJob

#: Columns by name: arrays of a value a row.
Columns: TypeAlias = dict[str, Any]


def predict(frame: pd.DataFrame, job: AnyJob, missing: int = 0) -> Columns:
    """Return the output columns of `frame`'s rows, in their order.

    So many other rows of the partition are `missing`, as a model before failed on them.
    They count as failed.
    """
    if isinstance(job, TowersJob):
        return _predict_together(frame, job, missing)
    if not job.token:
        return _predict_one(frame, job)
    with recording_partition(label_of(job), len(frame) + missing):
        if missing:
            add("failed_rows", missing)
        return _predict_one(frame, job)


def label_of(job: Job) -> Label:
    """Return what a model's partitions are counted under, on clients and workers."""
    return Label(job.model.label, None, job.token)


def _predict_one(frame: pd.DataFrame, job: Job) -> Columns:
    if not len(frame):
        empty = output_meta(job.outputs, job.nullable, job.quarantine)
        return {name: series.values for name, series in empty.items()}
    return _predict_rows()(frame, job)


@functools.cache
def _predict_rows() -> Callable[[pd.DataFrame, Job], Columns]:
    """Import torch, once in a process."""
    with meter("load"):
        from dask_infer.run.partition import predict_rows

    return predict_rows


def _predict_together(frame: pd.DataFrame, job: TowersJob, missing: int) -> Columns:
    """Return the columns of all towers, or what the head makes of them."""
    results = _run_towers(frame, job, missing)
    errors = RowErrors(len(frame))
    columns: Columns = {}
    for tower, found in zip(job.towers, results, strict=True):
        columns |= {name: found[own] for own, name in tower.columns}
        if ERROR_COLUMN in found:
            errors.add(tower.name, found[ERROR_COLUMN])
    if job.head is not None:
        columns = _predict_head(frame.index, job, columns, errors, missing)
    if job.quarantine:
        columns[ERROR_COLUMN] = errors.column()
    return columns


def _predict_head(
    index: pd.Index[Any],
    job: TowersJob,
    columns: Columns,
    errors: RowErrors,
    missing: int,
) -> Columns:
    """Run the head on the rows that no tower failed on; all others are missing."""
    assert job.head is not None
    good = errors.passed
    given = _frame(columns, index)
    if job.nullable:  # what no row misses goes in as it is under "raise"
        given = (given if good is None else given[good]).astype(_plain_dtypes(job))
    title = "combine" if job.name == "Ensemble" else "head"
    with naming_model(title):
        found = predict(given, job.head, missing + len(index) - len(given))
    places = None if good is None else np.flatnonzero(good)
    if ERROR_COLUMN in found:
        errors.add(title, found.pop(ERROR_COLUMN), places)
    if places is None:
        return found
    spread = np.full(len(index), -1)
    spread[places] = np.arange(len(places))
    return {name: _take(values, spread) for name, values in found.items()}


def _frame(columns: Columns, index: pd.Index[Any]) -> pd.DataFrame:
    # The dtype is named: else pandas makes text of an object array of str.
    series = {
        name: pd.Series(values, index=index, dtype=values.dtype, copy=False)
        for name, values in columns.items()
    }
    return pd.DataFrame(series, index=index, copy=False)


def _plain_dtypes(job: TowersJob) -> dict[str, Any]:
    """Return the dtypes that the towers' columns have where no row is missing."""
    known = {
        (place, column.name): pandas_dtype(column)
        for place, tower in enumerate(job.towers)
        for column in tower.job.outputs.columns
    }
    return {
        name: known[place, own]
        for place, tower in enumerate(job.towers)
        for own, name in tower.columns
    }


def _take(values: Any, places: np.ndarray) -> Any:
    """Return values by their places; -1 is missing."""
    found = pd.api.extensions.take(values, places, allow_fill=True)
    if isinstance(found, np.ndarray) and found.dtype == object:
        found[places < 0] = None
    return found


def _run_towers(frame: pd.DataFrame, job: TowersJob, missing: int) -> list[Columns]:
    """Return what each tower gives; those on other workers run beside the others."""
    towers = job.towers
    elsewhere = [any(model.group for model in tower.job.models) for tower in towers]
    if len(towers) == 1 or not any(elsewhere):
        return [_run(frame, missing, tower) for tower in towers]
    from dask_infer.pipeline.worker.remote_runner import feed_together

    began = time.monotonic()
    results: dict[int, Columns] = {}
    ended: dict[int, float] = {}

    def run(*places: int) -> None:
        for place in places:
            results[place] = _run(frame, missing, towers[place])
        ended.update(dict.fromkeys(places, time.monotonic()))

    here = [place for place, remote in enumerate(elsewhere) if not remote]
    feeders = [partial(run, place) for place, remote in enumerate(elsewhere) if remote]
    feed_together(feeders, partial(run, *here))
    last = max(ended.values())
    for place, tower in enumerate(towers):
        _count_idle(tower.job, last - ended[place])
    if job.head is not None:
        _count_idle(job.head, last - began)
    return [results[place] for place in range(len(towers))]


def _count_idle(job: AnyJob, seconds: float) -> None:
    for model in job.models:
        if model.token:
            count_idle(label_of(model), seconds)


def _run(frame: pd.DataFrame, missing: int, tower: Tower) -> Columns:
    with naming_model(tower.name):
        return predict(frame, tower.job, missing)


class RowErrors:
    """What several models say of the rows of a partition on which they failed.

    A message for each row that failed, of all models that failed on it.
    """

    def __init__(self, rows: int) -> None:
        self._texts: npt.NDArray[Any] = np.full(rows, None, object)

    def add(self, model: str, errors: Any, places: Any = None) -> None:
        """Add what a model says, or what is missing, for each row in these places."""
        for place in np.flatnonzero(~pd.isna(errors)):
            row = place if places is None else places[place]
            text, known = f"{model}: {errors[place]}", self._texts[row]
            self._texts[row] = text if known is None else f"{known}; {text}"

    @property
    def passed(self) -> npt.NDArray[np.bool_] | None:
        """Whether each row has no message; None where none has one."""
        failed: npt.NDArray[np.bool_] = self._texts != None  # noqa: E711
        return ~failed if failed.any() else None

    def column(self) -> Any:
        """Return Dask's string array."""
        return pd.array(self._texts, dtype=STRING)
