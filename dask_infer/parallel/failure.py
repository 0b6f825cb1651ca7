"""The failure of a batch in words: what failed, on which rows, where, and why."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dask_infer.batch.encode import Batch
from dask_infer.errors import PartitionError
from dask_infer.fault.step import Step


def partition_error(
    step: Step,
    error: BaseException,
    *,
    model: str,
    labels: pd.Index[Any],
    where: str,
    batch: Batch | None = None,
    advice: str = "",
) -> PartitionError:
    """Return the error of a partition, to be chained to its cause.

    Parameters
    ----------
    step, error
        What failed and with what.
    model
        The model's name.
    labels
        Index of the failed rows.
    where
        Device and worker.
    batch
        The arguments, where they were made.
    advice
        The remedy, where one is known.
    """
    inputs = f", inputs {batch.shapes()}" if batch is not None else ""
    return PartitionError(
        f'model "{model}" failed in {step} of {_span(labels)}{inputs}, on {where}: '
        f"{type(error).__name__}: {error}" + (f"; {advice}" if advice else "")
    )


def _span(labels: pd.Index[Any]) -> str:
    if len(labels) == 1:
        return f"row {labels[0]!r}"
    return f"{len(labels)} rows, {labels[0]!r} to {labels[-1]!r}"
