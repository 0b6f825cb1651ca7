"""What happens to the rows of a batch that failed.

`classify` runs while the error is handled, `handle` afterwards: only then does no
traceback hold the memory of the failed forward any more. Out-of-memory runs the rows
again in smaller batches. Any other error that a row may cause is searched for in pieces
of the batch, until the rows that fail are alone; they are left out. All else raises.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pandas as pd

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.outputs.assembler import Assembler
from dask_infer.batch.outputs.column_writers import TextWriter
from dask_infer.errors import InferError, PartitionError
from dask_infer.faults.bisect import HALVES, MANY, Rows, RowSearch
from dask_infer.faults.classify import (
    Step,
    StepFailed,
    describe,
    forget_frames,
    is_device_lost,
    is_of_no_row,
    raise_again,
)
from dask_infer.faults.deadline import DeadlineExceeded
from dask_infer.faults.error_budget import ErrorBudget
from dask_infer.metrics.recorder import add
from dask_infer.replica.worker_place import current_worker
from dask_infer.run.runner import Runner
from dask_infer.run.work import Work, row_count
from dask_infer.spec import ERROR_COLUMN, Job, OutputColumn

logger = logging.getLogger(__name__)

#: Topic of the events that say how many rows of a partition failed. They reach every
#: client: ``client.get_events("infer-errors")`` returns them when a computation is
#: over, ``client.subscribe_topic`` as they come (distributed 2026.8.0).
TOPIC = "infer-errors"

#: What helps where `is_device_lost`. CUDA reports it late, with rows of a batch that
#: may not be the cause.
LOST_DEVICE = (
    "the process can use its device no more: restart the worker "
    '(client.restart()). Often an index is out of range; device="cpu" names its row'
)

#: Timeouts of a partition after which a batch that hangs is not split any more: each
#: costs the timeout and leaves a thread behind.
MOST_TIMEOUTS = 8


class Outcome(NamedTuple):
    """How a batch failed, without the error itself, whose traceback holds memory."""

    #: As ``infer_error`` holds it.
    message: str = ""
    #: Memory ran out, and smaller batches may fit.
    smaller: bool = False
    #: Memory ran out while other batches were in flight: alone these rows may fit.
    again: bool = False
    #: The forward did not end in time.
    hung: bool = False
    #: See `Runner.cuts`.
    cuts: Collection[int] = ()


class Recovery:
    """The failed batches of one partition."""

    def __init__(
        self,
        job: Job,
        labels: pd.Index[Any],
        runner: Runner,
        work: Work,
        assembler: Assembler,
    ) -> None:
        self.job = job
        self.labels = labels
        self.runner = runner
        self.work = work
        self.assembler = assembler
        self.search = RowSearch()
        #: The text of each row that failed.
        self.errors: TextWriter | None = None
        if job.quarantine:
            self.errors = TextWriter(OutputColumn(ERROR_COLUMN, "string"), len(labels))
        self.budget = ErrorBudget(len(labels), job.max_errors)
        self.timeouts = 0
        #: The first error of a row, its frames cleared.
        self.cause: Exception | None = None

    def classify(
        self,
        rows: Rows,
        batch: Batch | None,
        error: Exception,
        step: Step,
        *,
        alone: bool,
    ) -> Outcome:
        """Return what to do about a failed batch, or raise what says where and why.

        `batch` is None where it could not be made, `step` where it failed unless a
        `StepFailed` knows better; `alone` says that no other batch was in flight.
        """
        cause: Exception = error
        if isinstance(error, StepFailed):
            step, cause = error.step, error.error
        hung = isinstance(cause, DeadlineExceeded)
        advice = ""
        if self.runner.is_out_of_memory(cause):
            forget_frames(error)
            if self.job.row_wise and row_count(rows) > 1:
                return Outcome(smaller=True)
            if not alone:
                return Outcome(again=True)
            advice = _more_memory(rows)
        elif hung:
            self.runner.discard()
            advice = "raise timeout=, or pass a smaller batch_size="
        elif is_device_lost(cause):
            advice = LOST_DEVICE
        if self.job.nullable and not is_of_no_row(cause):
            self._keep(cause, hung)
            message = describe(step, cause)
            message = f"{message}; {advice}" if advice else message
            return Outcome(message, hung=hung, cuts=self.runner.cuts(cause))
        if isinstance(cause, InferError):
            raise_again(cause)
        raise self._error(rows, batch, cause, step, advice) from (
            None if hung else cause
        )

    def handle(self, rows: Rows, outcome: Outcome) -> None:
        """Put the rows back in smaller pieces, or leave them out."""
        if outcome.smaller:
            self.runner.release_memory()
            self.runner.warn_of_memory(row_count(rows), self.work.halve(rows))
            add("halvings")
            return
        self.timeouts += outcome.hung
        too_many_timeouts = outcome.hung and self.timeouts > MOST_TIMEOUTS
        if too_many_timeouts and not self.budget.succeeded and self.job.max_errors < 1:
            hung = f"{self.timeouts} forwards hung and none ended"
            self.stop(hung, outcome.message)
        if self.job.row_wise and row_count(rows) > 1 and not too_many_timeouts:
            parts = MANY if outcome.hung else HALVES
            pieces = self.search.failed(rows, parts, outcome.cuts)
            self.work.put_back(rows, pieces)
            return
        self.search.alone(rows)
        self.assembler.missing(rows)
        if self.errors is not None:
            self.errors.block[rows] = outcome.message
        add("failed_rows", row_count(rows))
        label = _text(self.labels[rows][0])
        self.budget.fail(row_count(rows), label, outcome.message)
        if reason := self.budget.stops():
            self.stop(reason)

    def stop(self, reason: str, last: str = "") -> NoReturn:
        """Raise, because what fails is not the rows' fault.

        `last` is what failed, for where no single row did.
        """
        if isinstance(self.cause, InferError) and self.budget.alike:
            raise self.cause
        worker, stage, why = None, None, self.budget.messages() or last
        if self.cause is not None:
            worker, stage = self.runner.origin(self.cause)
        raise PartitionError(
            f'model "{self.job.model.name}" on {self.runner.where}: {reason}, which is '
            f"not the fault of single rows: {why}; see to the "
            "model, or raise infer.errors.max-fraction if so many rows are bad",
            worker=worker,
            stage=stage,
        ) from self.cause

    def report(self) -> None:
        """Say how many rows are left out, in the worker's log and as a Dask event."""
        budget, model, where = self.budget, self.job.model.name, self.runner.where
        if not budget.failed:
            return
        logger.warning(
            '%d of %d rows failed in model "%s" on %s and are missing; first %s',
            budget.failed, budget.rows, model, where, budget.first,
        )  # fmt: skip
        worker = current_worker()
        if worker is not None:
            counts = {"failed": budget.failed, "rows": budget.rows}
            worker.log_event(TOPIC, {"model": model, **counts, "first": budget.first})

    def _keep(self, cause: Exception, hung: bool) -> None:
        """Keep the first error to be chained, but not what its frames hold."""
        if self.cause is None and not hung:
            forget_frames(cause)
            self.cause = cause
        elif cause is not self.cause:
            # One exception raised again and again would grow a longer one each time.
            cause.__traceback__ = None

    def _error(
        self, rows: Rows, batch: Batch | None, cause: Exception, step: Step, advice: str
    ) -> PartitionError:
        """Return what failed, on which rows, where, and why."""
        labels = self.labels[rows]
        worker, stage = self.runner.origin(cause)
        inputs = "" if batch is None else f", inputs {batch.shapes()}"
        return PartitionError(
            f'model "{self.job.model.name}" failed in {step} of {_span(labels)}{inputs}'
            f", on {self.runner.where}: {type(cause).__name__}: {cause}"
            + (f"; {advice}" if advice else ""),
            rows=labels,
            step=step,
            stage=stage,
            worker=worker,
        )


def _more_memory(rows: Rows) -> str:
    if row_count(rows) == 1:
        return "one row does not fit: use a larger device or a smaller dtype="
    return "row_wise=False forbids smaller batches: pass a smaller batch_size="


def _span(labels: pd.Index[Any]) -> str:
    first, last = _text(labels[0]), _text(labels[-1])
    if len(labels) == 1:
        return f"row {first}"
    return f"{len(labels)} rows, {first} to {last}"


def _text(label: Any) -> str:
    """Return an index label as its row is called: ``7``, not ``np.int64(7)``."""
    return repr(label.item() if isinstance(label, np.generic) else label)
