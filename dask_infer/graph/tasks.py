"""The functions that graph tasks call: a partition in, its predictions out.

Runs in a worker's task thread. Torch is imported with the first row, not before.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from dask.tokenize import tokenize

from dask_infer.batch.outputs.column_dtypes import output_meta
from dask_infer.errors import PartitionError, make_portable
from dask_infer.metrics.recorder import meter
from dask_infer.metrics.sums import Label
from dask_infer.replica.partition_counters import recording_partition
from dask_infer.spec import AutoSpec, GroupSpec, Job, LayerGroups


def run_partition(
    frame: pd.DataFrame,
    job: bytes,
    emit: tuple[Any, ...],
    group_request: str | GroupSpec | LayerGroups | None = None,
    partition: int | None = None,
) -> pd.DataFrame:
    """Return `frame`'s kept columns and the predictions of its rows.

    Parameters
    ----------
    frame
        The rows of one partition, with at least the columns that the model reads.
    job
        The pickled `Job`; equal bytes are unpickled once in a process.
    emit
        Names of the result's columns, in order.
    group_request
        What `request_group` returned, where other workers hold the model or a layout
        was chosen.
    partition
        Number of the partition, for errors.
    """
    with _portable_errors(partition):
        request, label = _read_job(job)
        if isinstance(group_request, GroupSpec):
            request = replace(request, group=group_request)
        elif isinstance(group_request, LayerGroups):
            request = replace(request, sweep=group_request)
        with recording_partition(label, len(frame)):
            if len(frame):
                with meter("load"):
                    from dask_infer.run.partition import predict_rows

                predicted = predict_rows(frame, request)
            else:
                predicted = output_meta(
                    request.outputs, request.nullable, request.quarantine
                )
            return _result(frame, predicted, emit)


def request_group(group: bytes) -> str | GroupSpec | LayerGroups | None:
    """Wait until other workers hold the model together.

    Returns their group's key. Where the layout is chosen here, returns what the job has
    of it: the group, the layer groups of a sweep, or None where each process holds the
    model itself.
    """
    with _portable_errors():
        wanted: GroupSpec | AutoSpec = pickle.loads(group)
        if isinstance(wanted, GroupSpec):
            return _request_group(wanted)
        from dask_infer.pipeline.choice.auto_layout import choose_layout

        chosen = choose_layout(wanted)
        if isinstance(chosen, GroupSpec):
            _request_group(chosen)
        return chosen


def _request_group(group: GroupSpec) -> str:
    from dask_infer.pipeline.worker import group_request

    return group_request.request_group(group)


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


@functools.lru_cache(maxsize=256)
def _read_job(job: bytes) -> tuple[Job, Label]:
    request: Job = pickle.loads(job)
    return request, job_label(request)


def job_label(job: Job) -> Label:
    """Return what a job's partitions are counted under, on clients and workers."""
    return Label(job.model.label, None, tokenize(job)[:8])


def _result(
    frame: pd.DataFrame, predicted: dict[str, Any], emit: tuple[Any, ...]
) -> pd.DataFrame:
    """Kept columns, then predictions, under the partition's own index."""
    kept = [name for name in emit if name not in predicted]
    outputs = {name: predicted[name] for name in emit if name in predicted}
    objects = {name for name, values in outputs.items() if _is_object(values)}
    if not kept and not objects:
        return pd.DataFrame(outputs, index=frame.index, copy=False)
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
