"""One partition on its way through a lane: encode, send, wait, assemble.

Runs in the thread of the partition's task. Batches come back in the order in which
they were sent, at most `Lane.window` of them on their way; rows that have to be tried
again go back to the `Work` while others are still out.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any, NamedTuple

import pandas as pd

from dask_infer.batch.assemble import Assembler
from dask_infer.batch.encode import Batch, Encoder
from dask_infer.errors import InferError
from dask_infer.fault.deadline import DeadlineExceeded
from dask_infer.fault.step import Step, StepFailed, step
from dask_infer.model.tokenizers import load_tokenizer
from dask_infer.parallel.failure import partition_error
from dask_infer.parallel.lane import Lane, Pending
from dask_infer.parallel.work import Rows, Work, plan_work, row_count
from dask_infer.spec import Code, Job

logger = logging.getLogger(__name__)


class Sent(NamedTuple):
    """A batch on its way."""

    rows: Rows
    batch: Batch
    pending: Pending


class Feeder:
    """The rows of one partition, fed to one lane."""

    def __init__(self, frame: pd.DataFrame, job: Job, code: Code, lane: Lane) -> None:
        self.frame = frame
        self.job = job
        self.lane = lane
        self.encoder = Encoder(
            frame,
            job.inputs,
            interface=lane.interface,
            floating=lane.floating,
            preprocess=code.preprocess,
            tokenizer=_tokenizer(job, code),
            accepts=lane.accepts,
        )
        self.assembler = Assembler(
            job.outputs,
            len(frame),
            nullable=job.on_error != "raise",
            side=self.encoder.side,
        )
        self.encodes: Step = "input" if code.preprocess is None else "preprocess"
        self.work: Work = plan_work(len(frame), self.encoder, job, lane)
        #: Batches sent and not waited for, oldest first.
        self.flight: deque[Sent] = deque()
        self.finished = time.perf_counter()

    def columns(self) -> dict[str, Any]:
        """Run every batch and put the outputs in the rows' order."""
        while (rows := self.work.take()) is not None or self.flight:
            if rows is None:
                self._collect()
                continue
            self._send(rows)
            while len(self.flight) >= self.lane.window:
                self._collect()
        if self.encoder.truncated:
            logger.warning(
                "%d of %d texts were truncated at the tokenizer's model_max_length",
                self.encoder.truncated,
                len(self.frame),
            )
        return self.assembler.columns()

    def _send(self, rows: Rows) -> None:
        """Start a batch."""
        batch = None
        try:
            with step(self.encodes):
                batch = self.encoder.batch(rows)
            self.flight.append(Sent(rows, batch, self.lane.send(batch)))
            return
        except Exception as error:
            self._judge(rows, batch, error)
        # Here no traceback holds the failed forward's memory any more.
        del batch
        self._retry_smaller(rows)

    def _collect(self) -> None:
        """Wait for the outputs of the oldest batch and store them."""
        rows, batch, pending = self.flight.popleft()
        try:
            output = dict(pending.wait())
        except Exception as error:
            self._judge(rows, batch, error)
        else:
            self.assembler.add(rows, output, batch.lengths, batch.padded)
            self._count(row_count(rows))
            return
        del batch, pending
        self._retry_smaller(rows)

    def _count(self, rows: int) -> None:
        now = time.perf_counter()
        self.work.observe(rows, now - self.finished)
        self.finished = now
        self.lane.count(rows)

    def _judge(self, rows: Rows, batch: Batch | None, error: Exception) -> None:
        """Return where smaller batches may help; else raise, with rows and place."""
        failed = error.step if isinstance(error, StepFailed) else "forward"
        cause = error.error if isinstance(error, StepFailed) else error
        if self.lane.is_out_of_memory(cause):
            if self.job.row_wise and row_count(rows) > 1:
                return
            raise self._failure(
                failed, rows, None, cause, self._more_memory(rows)
            ) from cause
        if isinstance(cause, InferError):
            raise cause
        if isinstance(cause, DeadlineExceeded):
            self.lane.discard()
            advice = "raise timeout=, or pass a smaller batch_size="
            raise self._failure(failed, rows, batch, cause, advice) from None
        raise self._failure(failed, rows, batch, cause) from cause

    def _retry_smaller(self, rows: Rows) -> None:
        """After out-of-memory, put the same rows back in smaller batches."""
        while self.flight:  # what is under way takes memory, too
            self._collect()
        self.lane.release_memory()
        size, count = self.work.halve(rows), row_count(rows)
        if self.lane.first_out_of_memory():
            logger.warning(
                'model "%s" ran out of memory on %s with %d rows; going on with %d. '
                "Pass batch_size=%d to start there",
                self.job.model.name, self.lane.where, count, size, size,
            )  # fmt: skip

    def _more_memory(self, rows: Rows) -> str:
        if row_count(rows) == 1:
            return "one row does not fit: use a larger device or a smaller dtype="
        return "row_wise=False forbids smaller batches: pass a smaller batch_size="

    def _failure(
        self,
        failed: Step,
        rows: Rows,
        batch: Batch | None,
        error: BaseException,
        advice: str = "",
    ) -> Exception:
        return partition_error(
            failed,
            error,
            model=self.job.model.name,
            labels=self.frame.index[rows],
            where=self.lane.where,
            batch=batch,
            advice=advice,
        )


def _tokenizer(job: Job, code: Code) -> Any:
    if not job.inputs.tokenized:
        return None
    return load_tokenizer(code.tokenizer, directory=job.model.path)
