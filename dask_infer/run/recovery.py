"""What becomes of the rows of a batch that failed.

`classify` runs while the error is handled, `act` afterwards: only then does no
traceback hold the memory of the failed forward any more. Out-of-memory runs the rows
again in smaller batches; any other error is looked for in pieces of the batch, until
the rows that fail are alone and left out. An error that is nobody's row raises.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, NoReturn

import pandas as pd

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.outputs.assembler import Assembler
from dask_infer.batch.outputs.error_column import ErrorColumn
from dask_infer.errors import InferError, PartitionError
from dask_infer.faults.bisect import HALVES, MANY, Search
from dask_infer.faults.classify import describe, forget_frames, is_nobodys
from dask_infer.faults.deadline import DeadlineExceeded
from dask_infer.faults.error_budget import ErrorBudget
from dask_infer.faults.step import StepFailed, raise_again
from dask_infer.metrics.recorder import add
from dask_infer.run.partition_error import partition_error, show
from dask_infer.run.runner import Runner
from dask_infer.run.work import Rows, Work, row_count
from dask_infer.spec import Job

logger = logging.getLogger(__name__)

#: Timeouts of a partition after which a batch that hangs is not split any more: each
#: costs the timeout and leaves a thread behind.
MOST_TIMEOUTS = 8


class Outcome(NamedTuple):
    """What failed, without the error itself, whose traceback holds memory."""

    #: As ``infer_error`` holds it.
    message: str
    #: Memory ran out, and smaller batches may fit.
    smaller: bool = False
    #: Memory ran out while other batches were under way: alone these rows may fit.
    again: bool = False
    #: The forward did not end in time.
    hung: bool = False


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
        self.search = Search()
        self.errors = ErrorColumn(len(labels))
        self.budget = ErrorBudget(len(labels), job.max_errors)
        self.timeouts = 0
        #: The first error of a row, its frames cleared.
        self.cause: Exception | None = None

    def classify(
        self, rows: Rows, batch: Batch | None, error: Exception, *, alone: bool
    ) -> Outcome:
        """Return what to do about a failed batch, or raise what says where and why.

        `alone` says that no other batch was under way.
        """
        failed = error.step if isinstance(error, StepFailed) else "forward"
        cause = error.error if isinstance(error, StepFailed) else error
        hung = isinstance(cause, DeadlineExceeded)
        advice = ""
        if self.runner.is_out_of_memory(cause):
            forget_frames(error)
            if self.job.row_wise and row_count(rows) > 1:
                return Outcome("", smaller=True)
            if not alone:
                return Outcome("", again=True)
            advice = self._more_memory(rows)
        elif hung:
            self.runner.discard()
            advice = "raise timeout=, or pass a smaller batch_size="
        if self.job.nullable and not is_nobodys(cause):
            return self._rows_fault(describe(failed, cause), advice, cause, hung)
        if isinstance(cause, InferError):
            raise_again(cause)
        raise partition_error(
            failed,
            cause,
            model=self.job.model.name,
            labels=self.labels[rows],
            where=self.runner.where,
            batch=batch,
            advice=advice,
        ) from (None if hung else cause)

    def act(self, rows: Rows, outcome: Outcome) -> None:
        """Put the rows back in smaller pieces, or leave them out."""
        if outcome.smaller:
            self._retry_smaller(rows)
            return
        self.timeouts += outcome.hung
        too_many_timeouts = outcome.hung and self.timeouts > MOST_TIMEOUTS
        if too_many_timeouts and not self.budget.succeeded and self.job.max_errors < 1:
            self.stop(f"{self.timeouts} forwards hung and none ended")
        if self.job.row_wise and row_count(rows) > 1 and not too_many_timeouts:
            parts = MANY if outcome.hung else HALVES
            self.work.put_back(rows, self.search.failed(rows, parts))
            return
        self.search.alone(rows)
        self._leave_out(rows, outcome.message)

    def take(self) -> Rows | None:
        """Return the next batch to run, or None when none is left to be taken."""
        while (rows := self.work.take()) is not None:
            pieces = self.search.instead(rows)
            if pieces is None:
                break
            self.work.put_back(rows, pieces)
        return rows

    def passed(self, rows: Rows) -> None:
        """Count rows whose outputs are stored."""
        self.search.passed(rows)
        self.budget.succeed(row_count(rows))

    def stop(self, reason: str) -> NoReturn:
        """Raise, because what fails is not the rows' fault."""
        if isinstance(self.cause, InferError) and self.budget.alike:
            raise self.cause
        raise PartitionError(
            f'model "{self.job.model.name}" on {self.runner.where}: {reason}, which is '
            f"not the fault of single rows: {self.budget.messages()}; see to the "
            "model, or raise infer.errors.max-fraction if so many rows are bad"
        ) from self.cause

    def _rows_fault(
        self, message: str, advice: str, cause: Exception, hung: bool
    ) -> Outcome:
        if self.cause is None and not hung:
            # Kept to be chained, but not what its frames hold.
            forget_frames(cause)
            self.cause = cause
        elif cause is not self.cause:
            # One exception raised again and again would grow a longer one each time.
            cause.__traceback__ = None
        return Outcome(f"{message}; {advice}" if advice else message, hung=hung)

    def _leave_out(self, rows: Rows, message: str) -> None:
        self.assembler.missing(rows)
        self.errors.put(rows, message)
        add("failed_rows", row_count(rows))
        self.budget.fail(row_count(rows), show(self.labels[rows][0]), message)
        if reason := self.budget.stops():
            self.stop(reason)

    def _retry_smaller(self, rows: Rows) -> None:
        self.runner.release_memory()
        size, count = self.work.halve(rows), row_count(rows)
        add("halvings")
        if self.runner.first_out_of_memory():
            logger.warning(
                'model "%s" ran out of memory on %s with %d rows; going on with %d. '
                "Pass batch_size=%d to start there",
                self.job.model.name, self.runner.where, count, size, size,
            )  # fmt: skip

    def _more_memory(self, rows: Rows) -> str:
        if row_count(rows) == 1:
            return "one row does not fit: use a larger device or a smaller dtype="
        return "row_wise=False forbids smaller batches: pass a smaller batch_size="
