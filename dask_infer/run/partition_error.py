"""The failure of a batch in words: what failed, on which rows, where, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dask_infer.batch.inputs.batch import Batch
from dask_infer.errors import PartitionError
from dask_infer.faults.step import Step


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
    first, last = show(labels[0]), show(labels[-1])
    if len(labels) == 1:
        return f"row {first}"
    return f"{len(labels)} rows, {first} to {last}"


def show(label: Any) -> str:
    """Return an index label as its row is called: ``7``, not ``np.int64(7)``."""
    return repr(label.item() if isinstance(label, np.generic) else label)
