"""One partition on its way through a runner: encode, send, wait, assemble.

Runs in the thread of the partition's task. Batches come back in the order in which
they were sent, at most `Runner.window` of them on their way; rows that have to be tried
again go back to the `Work` while others are still out.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.inputs.encoder import Encoder
from dask_infer.batch.outputs.assembler import Assembler
from dask_infer.batch.outputs.generated import Generation
from dask_infer.faults.step import Step, step
from dask_infer.metrics.recorder import add, meter
from dask_infer.model.runtime.tokenizers import load_tokenizer
from dask_infer.replica.worker_place import cores_of_process
from dask_infer.run.prefetch import Prefetch, batches_ahead
from dask_infer.run.recovery import Outcome, Recovery
from dask_infer.run.report_errors import report
from dask_infer.run.runner import Pending, Runner
from dask_infer.run.work import Rows, Work, plan_work, row_count
from dask_infer.spec import ERROR_COLUMN, Code, Job

logger = logging.getLogger(__name__)


class Sent(NamedTuple):
    """A batch on its way."""

    rows: Rows
    batch: Batch
    pending: Pending
    #: Others were under way when it was sent.
    crowded: bool


class Feeder:
    """The rows of one partition, fed to one runner."""

    def __init__(
        self, frame: pd.DataFrame, job: Job, code: Code, runner: Runner
    ) -> None:
        rules = runner.token_rules
        generation = None
        if rules.generation is not None:
            generation = Generation(rules, code.call_kwargs, job.outputs)
            rules = replace(rules, unseen=generation.unseen)
            if generation.equal_lengths:
                rules = replace(rules, equal_lengths=True)
        if rules.alone:
            job = replace(job, batch_size=1)
        self.frame = frame
        self.job = job
        #: Cuts padding off generated sequences; `postprocess` sees them as they are.
        self.generation = None if code.postprocess else generation
        self.runner = runner
        self.encoder = Encoder(
            frame,
            runner.inputs,
            interface=runner.interface,
            floating=runner.floating,
            preprocess=code.preprocess,
            tokenizer=_tokenizer(job, code),
            rules=rules,
            dtypes=runner.dtypes,
        )
        self.assembler = Assembler(job.outputs, len(frame), nullable=job.nullable)
        self.encodes: Step = "input" if code.preprocess is None else "preprocess"
        self.work: Work = plan_work(len(frame), self.encoder, job, runner)
        self.encode: Callable[[Rows], Batch] = self.encoder.batch
        #: Entered while batches are run.
        self.beside: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if code.preprocess is not None and (ahead := batches_ahead()):
            prefetch = Prefetch(self.work, self.encode, ahead)
            self.work, self.encode = prefetch, prefetch.batch
            self.beside = prefetch.running()
        self.recovery = Recovery(job, frame.index, runner, self.work, self.assembler)
        #: Batches sent and not waited for, oldest first.
        self.flight: deque[Sent] = deque()
        self.finished = runner.clock()

    def columns(self) -> dict[str, Any]:
        """Run every batch and put the outputs in the rows' order."""
        with self.beside:
            self._run()
        self._report()
        with meter("decode"):
            columns = self.assembler.columns()
        if self.job.quarantine:
            columns[ERROR_COLUMN] = self.recovery.errors.finish()
        return columns

    def _run(self) -> None:
        while (rows := self.recovery.take()) is not None or self.flight:
            if rows is None:
                self._collect()
                continue
            self._send(rows)
            while len(self.flight) >= self.runner.window:
                self._collect()

    def _send(self, rows: Rows) -> None:
        """Start a batch."""
        batch = None
        try:
            with meter("encode"), step(self.encodes):
                batch = self.encode(rows)
            whole = not self.job.row_wise
            pieces = [rows] if whole else self.encoder.unpadded(rows, batch)
            if len(pieces) > 1:
                self.work.put_back(rows, pieces)
                return
            crowded = bool(self.flight)
            self.flight.append(Sent(rows, batch, self.runner.send(batch), crowded))
            return
        except Exception as error:
            outcome = self._classify(rows, batch, error)
        del batch
        self._recover(rows, outcome)

    def _collect(self) -> None:
        """Wait for the outputs of the oldest batch and store them."""
        rows, batch, pending, crowded = self.flight.popleft()
        try:
            self._store(rows, batch, dict(pending.wait()))
        except Exception as error:
            outcome = self._classify(rows, batch, error, crowded)
        else:
            self._count(rows)
            return
        del batch, pending
        self._recover(rows, outcome)

    def _store(self, rows: Rows, batch: Batch, output: dict[Any, Any]) -> None:
        asks = self.job.row_wise and self.job.method != "generate"
        if asks and self.assembler.is_axis_unknown(output, batch.padding):
            self._settle(rows, batch)
        with meter("decode"), step("output"):
            self._add(self.assembler, rows, output, batch)

    def _add(
        self, assembler: Assembler, rows: Rows, output: dict[Any, Any], batch: Batch
    ) -> None:
        if self.generation is not None:
            assembler.add(rows, self.generation.unpadded(output, batch))
            return
        assembler.add(rows, output, batch.padding)

    def _settle(self, rows: Rows, batch: Batch) -> None:
        """Run the shortest row alone, to see whether an axis is as long as its tokens.

        Only columns declared by ``meta=`` ask, once a partition. Ids that `generate`
        returns are as long as they are.
        """
        assert batch.padding.lengths is not None
        place = int(np.argmin(batch.padding.lengths))
        row = rows.start + place if isinstance(rows, slice) else int(rows[place])
        alone = self.encode(slice(row, row + 1))
        if (
            alone.padding.width == batch.padding.width
        ):  # whoever pads does so to a length of his own
            alone = _wider(alone)
        output = None  # of a model that takes no other length: nothing is cut off
        with contextlib.suppress(Exception):
            output = dict(self.runner.send(alone).wait())
        self.assembler.learn_axis(output, alone.padding.width)

    def _count(self, rows: Rows) -> None:
        now = self.runner.clock()
        self.work.observe(rows, now - self.finished)
        self.finished = now
        self.recovery.passed(rows)
        self.runner.count(row_count(rows))
        add("rows", row_count(rows))

    def _classify(
        self, rows: Rows, batch: Batch | None, error: Exception, crowded: bool = False
    ) -> Outcome:
        alone = not (crowded or self.flight)
        return self.recovery.classify(rows, batch, error, alone=alone)

    def _land(self) -> None:
        """Wait for all that is under way."""
        while self.flight:
            self._collect()

    def _recover(self, rows: Rows, outcome: Outcome) -> None:
        """See to the rows of a failed batch, now that its error is gone."""
        if outcome.smaller or outcome.again:
            self._land()  # what is under way takes memory, too
        if outcome.again:
            self.runner.release_memory()
            self._send(rows)
            self._land()
            return
        self.recovery.act(rows, outcome)
        if draws := self.recovery.budget.draws():
            self._draw(draws, outcome)
        self.finished = self.runner.clock()

    def _draw(self, draws: int, outcome: Outcome) -> None:
        """Try rows drawn at random, each alone; stop where all fail alike."""
        if outcome.hung or not self.job.row_wise:
            return
        self._land()
        # Always the same rows: a partition that is run again must end the same way.
        for row in np.random.default_rng(0).choice(len(self.frame), draws, False):
            if self._failure_of(slice(row, row + 1)) != outcome.message:
                return
        self.recovery.stop(f"{draws} rows drawn at random failed like the first ones")

    def _failure_of(self, row: slice) -> str | None:
        """Run one row for nothing but the message with which it fails."""
        batch = None
        try:
            with step(self.encodes):
                batch = self.encode(row)
            output = dict(self.runner.send(batch).wait())
            with step("output"):
                once = Assembler(self.job.outputs, 1, nullable=True)
                self._add(once, slice(0, 1), output, batch)
        except Exception as error:
            return self._classify(row, batch, error).message
        return None

    def _report(self) -> None:
        report(self.recovery.budget, self.job.model.name, self.runner.where)
        if self.encoder.truncated:
            logger.warning(
                "%d of %d texts were truncated at the tokenizer's model_max_length",
                self.encoder.truncated,
                len(self.frame),
            )


def _wider(batch: Batch) -> Batch:
    """Return the batch with its column of padding twice; each row must have one."""
    padding = batch.padding
    left = padding.side == "left"

    def padded(value: Any) -> Any:
        if tuple(getattr(value, "shape", ()))[1:2] != (padding.width,):
            return value
        parts = [value[:, :1], value] if left else [value, value[:, -1:]]
        join = torch.cat if isinstance(value, torch.Tensor) else np.concatenate
        return join(parts, 1)

    args = tuple(map(padded, batch.args))
    kwargs = {name: padded(value) for name, value in batch.kwargs.items()}
    padding = replace(padding, width=padding.width + 1)
    return replace(batch, args=args, kwargs=kwargs, padding=padding)


def _tokenizer(job: Job, code: Code) -> Any:
    if not job.inputs.tokenized:
        return None
    directory, cores = job.model.path, cores_of_process()
    return load_tokenizer(code.tokenizer, directory=directory, cores=cores)
