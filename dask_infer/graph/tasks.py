"""The functions that graph tasks call: a partition in, its predictions out.

Runs in a worker's task thread. Torch is imported with the first row, not before.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from dask_infer.errors import PartitionError, make_portable
from dask_infer.run.predict import predict
from dask_infer.spec import AnyJob, AutoSpec, ChosenLayout, GroupSpec


def run_partition(
    frame: pd.DataFrame,
    job: bytes,
    emit: tuple[Any, ...],
    group_request: tuple[ChosenLayout, ...] | None = None,
    partition: int | None = None,
) -> pd.DataFrame:
    """Return `frame`'s kept columns and the predictions of its rows.

    Parameters
    ----------
    frame
        The rows of one partition, with at least the columns that the model reads.
    job
        The pickled job; equal bytes are unpickled once in a process.
    emit
        Names of the result's columns, in order.
    group_request
        What `request_groups` returned, where other workers hold models or a layout was
        chosen.
    partition
        Number of the partition, for errors.
    """
    with _portable_errors(partition):
        request: AnyJob = _read_job(job)
        if group_request is not None:
            request = request.spread(iter(group_request))
        return _result(frame, predict(frame, request), emit)


def request_groups(wanted: bytes) -> tuple[ChosenLayout, ...]:
    """Wait until other workers hold models together; return the layout of each.

    Parameters
    ----------
    wanted
        A pickled `GroupSpec` or `AutoSpec` for each.
    """
    with _portable_errors():
        specs: tuple[GroupSpec | AutoSpec, ...] = pickle.loads(wanted)
        chosen: tuple[ChosenLayout, ...] = tuple(
            spec for spec in specs if isinstance(spec, GroupSpec)
        )
        if len(chosen) < len(specs):
            from dask_infer.pipeline.choice.auto_layout import choose_layouts

            chosen = choose_layouts(specs)
        groups = {spec.key: spec for spec in chosen if isinstance(spec, GroupSpec)}
        if groups:
            from dask_infer.pipeline.worker import group_request

            group_request.request_groups([*groups.values()])
        return chosen


@contextlib.contextmanager
def _portable_errors(partition: int | None = None) -> Iterator[None]:
    """Make errors name the partition, and survive pickling where Dask pickles them."""
    try:
        yield
    except Exception as error:
        if isinstance(error, PartitionError):
            error.partition = partition
        from dask_infer.replica.worker_place import current_worker

        # A child of scheduler="processes", or any worker.
        child = multiprocessing.parent_process() is not None
        if child or current_worker() is not None:
            make_portable(error)
        raise


_read_job = functools.lru_cache(maxsize=256)(pickle.loads)


def _result(
    frame: pd.DataFrame, predicted: dict[str, Any], emit: tuple[Any, ...]
) -> pd.DataFrame:
    """Kept columns, then predictions, under the partition's own index."""
    kept = [name for name in emit if name not in predicted]
    outputs = {name: predicted[name] for name in emit if name in predicted}
    objects = {name for name, values in outputs.items() if _is_object(values)}
    if not kept and not objects:
        result = pd.DataFrame(outputs, index=frame.index, copy=False)
        result.columns.name = frame.columns.name
        return result
    # Selecting columns takes longer than all the rest: only where it must be.
    whole = kept == list(frame.columns)
    result = (frame if whole else frame[kept]).copy(deep=False)
    for name, values in outputs.items():
        # Else pandas makes its own text dtype of an object array of str.
        dtype = values.dtype if name in objects else None
        result[name] = pd.Series(values, index=frame.index, dtype=dtype, copy=False)
    return result


def _is_object(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype == object
