"""One partition through a runner: encode, send, wait, assemble.

Runs in the thread of the partition's task. Batches come back in the order in which
they were sent, at most `Runner.window` of them in flight; rows that have to be tried
again go back to the `Work` while others are still in flight.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from dask_infer import config
from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.inputs.encode_options import EncodeOptions
from dask_infer.batch.inputs.encoder import Encoder
from dask_infer.batch.outputs.assembler import Assembler
from dask_infer.batch.outputs.generated import Generation
from dask_infer.device.stream import Pending
from dask_infer.errors import InputError, OutputError, PlacementError
from dask_infer.faults.bisect import Rows
from dask_infer.faults.classify import Step
from dask_infer.metrics.recorder import add, meter, recorded
from dask_infer.model.identity.user_classes import SharedClasses, sharing
from dask_infer.model.runtime.tokenizers import TokenizerDirectory, load_tokenizer
from dask_infer.model.store.blob_store import read_blob
from dask_infer.replica.measured import ThreadTimes, is_observed, observe_partition
from dask_infer.replica.setup_worker import setup_worker
from dask_infer.replica.worker_place import (
    cores_of_process,
    current_place,
    current_worker,
)
from dask_infer.run.local_runner import LocalRunner
from dask_infer.run.prefetch import Prefetch
from dask_infer.run.recovery import Outcome, Recovery
from dask_infer.run.runner import Runner
from dask_infer.run.work import Work, plan_work, row_count
from dask_infer.spec import ERROR_COLUMN, Blob, Job, UserCode

logger = logging.getLogger(__name__)


def predict_rows(frame: pd.DataFrame, job: Job) -> dict[str, Any]:
    """Return the output columns of `frame`'s rows, in their order."""
    with _naming(job.model.name), contextlib.ExitStack() as opened:
        with meter("load"):
            worker = current_worker()
            if worker is not None:
                setup_worker(worker)
            code = read_code(job.code)
            runner = _open_runner(job, code, opened)
        kind = runner.observed_kind
        if kind is None or not is_observed(job, kind):
            return Partition(frame, job, code, runner).columns()
        began = ThreadTimes.now()
        columns = Partition(frame, job, code, runner).columns()
        if (sums := recorded()) is not None:
            spent = ThreadTimes.now().since(began)
            observe_partition(job, sums, spent, kind, runner.elsewhere)
        return columns


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Make errors say of which of a dataframe's models they are, unless they do."""
    try:
        yield
    except (InputError, OutputError, PlacementError) as error:
        text, worker = str(error), current_worker()
        if f'model "{name}"' not in text:
            placed = worker if isinstance(error, PlacementError) else None
            where = "" if placed is None else f" on worker {placed.address}"
            error.args = (f'model "{name}"{where}: {text}', *error.args[1:])
        raise


def _open_runner(job: Job, code: UserCode, opened: contextlib.ExitStack) -> Runner:
    """Return what runs the batches of a partition until `opened` is closed."""
    if job.group is not None:
        from dask_infer.pipeline.worker.remote_runner import remote_runner

        return opened.enter_context(remote_runner(job, code))
    place = current_place()
    if job.sweep is not None:
        from dask_infer.run.sweep.sweep_runner import sweep_runner

        return opened.enter_context(sweep_runner(job, code, place))
    return LocalRunner(job, code, place, opened)


def read_code(blob: Blob) -> UserCode:
    """Return the user's functions of a job, unpickled once in a process."""
    code, shared = _read_code(blob)
    if shared.changed():
        _read_code.cache_clear()
        code, _ = _read_code(blob)
    return code


@functools.lru_cache(maxsize=64)
def _read_code(blob: Blob) -> tuple[UserCode, SharedClasses]:
    with sharing() as shared:
        return read_blob(blob), shared


class Sent(NamedTuple):
    """A batch in flight."""

    rows: Rows
    batch: Batch
    pending: Pending
    #: Others were in flight when it was sent.
    crowded: bool


class Partition:
    """The rows of one partition, run by one runner."""

    def __init__(
        self, frame: pd.DataFrame, job: Job, code: UserCode, runner: Runner
    ) -> None:
        rules = runner.token_rules
        generation = None
        if rules.generation is not None:
            generation = Generation(rules, code.call_kwargs, job.outputs)
            rules = replace(rules, unseen=generation.unseen)
            if generation.equal_lengths:
                rules = replace(rules, equal_lengths=True)
        # Batches of consecutive rows are not cut by length.
        unequal = generation is not None and rules.equal_lengths and not job.row_wise
        if rules.alone or unequal:
            job = replace(job, batch_size=1)
        self.frame = frame
        self.job = job
        #: Cuts padding off generated sequences; `postprocess` sees them as they are.
        self.generation = None if code.postprocess else generation
        self.runner = runner
        options = EncodeOptions(
            runner.interface,
            runner.floating or torch.get_default_dtype(),
            _tokenizer(job, code),
            rules,
            runner.dtypes,
        )
        with meter("encode"):  # texts are tokenized
            self.encoder = Encoder(frame, runner.inputs, options, code.preprocess)
        #: Batches may be cut by the lengths of their rows, which the encoder may know.
        self.unpads, self.has_lengths = job.row_wise, self.encoder.lengths is not None
        self.assembler = Assembler(job.outputs, len(frame), nullable=job.nullable)
        self.encode_step: Step = "input" if code.preprocess is None else "preprocess"
        self.work: Work = plan_work(len(frame), self.encoder, job, runner)
        self.encode: Callable[[Rows], Batch] = self.encoder.batch
        if (pin := runner.pin) is not None:
            self.encode = lambda rows: pin(self.encoder.batch(rows))
        #: Entered while batches are run.
        self.prefetching: contextlib.AbstractContextManager[Prefetch | None]
        self.prefetching = contextlib.nullcontext()
        ahead = int(config.get("batch.prefetch"))
        if code.preprocess is not None and ahead:
            prefetch = Prefetch(self.work, self.encode, ahead)
            self.work, self.encode = prefetch, prefetch.batch
            self.prefetching = contextlib.closing(prefetch)
        self.recovery = Recovery(job, frame.index, runner, self.work, self.assembler)
        #: Batches sent and not waited for, oldest first.
        self.flight: deque[Sent] = deque()
        #: Batches that failed, to be handled before others are sent.
        self.failed: deque[tuple[Rows, Outcome]] = deque()
        self.finished = runner.clock()

    def columns(self) -> dict[str, Any]:
        """Run every batch and put the outputs in the rows' order."""
        with self.prefetching:
            while True:
                if self.failed:
                    self._handle(*self.failed.popleft())
                elif (
                    len(self.flight) < self.runner.window
                    and (rows := self._take()) is not None
                ):
                    self._send(rows)
                elif self.flight:
                    self._collect()
                else:
                    break
        self.recovery.report()
        if self.encoder.truncated:
            logger.warning(
                "%d of %d texts were truncated at the tokenizer's model_max_length",
                self.encoder.truncated,
                len(self.frame),
            )
        with meter("decode"):
            columns = self.assembler.columns()
        if self.recovery.errors is not None:
            columns[ERROR_COLUMN] = self.recovery.errors.result(None)
        return columns

    def _take(self) -> Rows | None:
        """Return the next batch to run, or None when none is left to be taken."""
        search = self.recovery.search
        while (rows := self.work.take()) is not None and search.active:
            pieces = search.instead(rows)
            if pieces is None:
                break
            self.work.put_back(rows, pieces)
        return rows

    def _send(self, rows: Rows) -> None:
        """Start a batch."""
        batch, step = None, self.encode_step
        crowded = bool(self.flight)
        try:
            with meter("encode"):
                batch = self.encode(rows)
            if self.unpads and (self.has_lengths or batch.padding.lengths is not None):
                pieces = self.encoder.unpadded(rows, batch)
                if len(pieces) > 1:
                    self.work.put_back(rows, pieces)
                    return
            step = "forward"
            pending = self.runner.send(batch, rows)
            if self.runner.waits:
                batch = self.runner.kept(batch)
            self.flight.append(Sent(rows, batch, pending, crowded))
        except Exception as error:
            self.failed.append((rows, self._classify(rows, batch, error, step)))

    def _collect(self) -> None:
        """Wait for the outputs of the oldest batch and store them."""
        place = 0
        if len(self.flight) > 1:
            place = self.runner.next_back(sent.pending for sent in self.flight)
        rows, batch, pending, crowded = self.flight[place]
        del self.flight[place]
        fields: dict[Any, Any] = {}
        step: Step = "forward"
        try:
            fields = dict(pending())
            if batch.padding.width and self._is_in_doubt(fields, batch):
                self._settle(rows, batch)
            step = "output"
            with meter("decode"):
                self._add(self.assembler, rows, fields, batch)
        except Exception as error:
            outcome = self._classify(rows, batch, error, step, crowded)
            self.failed.append((rows, outcome))
            return
        now = self.runner.clock()
        self.work.observe(rows, now - self.finished)
        self.finished = now
        self.recovery.budget.succeeded += row_count(rows)
        if self.recovery.search.active:
            self.recovery.search.passed(rows)
        self.runner.count(row_count(rows))
        add("rows", row_count(rows))

    def _add(
        self, assembler: Assembler, rows: Rows, output: dict[Any, Any], batch: Batch
    ) -> None:
        if self.generation is not None:
            assembler.add(rows, self.generation.unpadded(output, batch))
            return
        assembler.add(rows, output, batch.padding)

    def _is_in_doubt(self, fields: dict[Any, Any], batch: Batch) -> bool:
        if not self.job.row_wise or self.job.method == "generate":
            return False
        return self.assembler.is_axis_unknown(fields, batch.padding)

    def _settle(self, rows: Rows, batch: Batch) -> None:
        """Run the shortest row alone, to see whether an axis is as long as its tokens.

        Only columns declared by ``meta=`` ask, once a partition. Ids that `generate`
        returns are as long as they are.
        """
        assert batch.padding.lengths is not None
        place = int(np.argmin(batch.padding.lengths))
        row = rows.start + place if isinstance(rows, slice) else int(rows[place])
        alone = self.encode(slice(row, row + 1))
        if alone.padding.width == batch.padding.width:  # padded to a fixed length
            alone = _wider(alone)
        output = None  # of a model that takes no other length: nothing is cut off
        with contextlib.suppress(Exception):
            output = dict(self.runner.send(alone)())
        self.assembler.learn_axis(output, alone.padding.width)

    def _classify(
        self,
        rows: Rows,
        batch: Batch | None,
        error: Exception,
        step: Step,
        crowded: bool = False,
    ) -> Outcome:
        alone = not (crowded or self.flight)
        return self.recovery.classify(rows, batch, error, step, alone=alone)

    def _collect_all(self) -> None:
        while self.flight:
            self._collect()

    def _handle(self, rows: Rows, outcome: Outcome) -> None:
        """Run the rows of a failed batch again, or leave them out.

        The error is gone by now: its traceback held the memory of the forward.
        """
        if outcome.again or (outcome.smaller and not self.runner.waits):
            self._collect_all()  # what is in flight takes memory, too
        if outcome.again:
            self.runner.release_memory()
            self._send(rows)
            self._collect_all()
            return
        self.recovery.handle(rows, outcome)
        # Batches that wait for the same pass tell more than rows drawn at random.
        waits = self.runner.waits and self.flight
        if not waits and (draws := self.recovery.budget.draws()):
            self._draw(draws, outcome)
        self.finished = self.runner.clock()

    def _draw(self, draws: int, outcome: Outcome) -> None:
        """Try rows drawn at random, each alone; stop where all fail alike."""
        if outcome.hung or not self.job.row_wise:
            return
        self._collect_all()
        # Always the same rows: a partition that is run again must have the same result.
        left = np.random.default_rng(0).choice(len(self.frame), draws, False)
        while len(left):
            window = self.runner.window
            trials = [self._trial(slice(row, row + 1)) for row in left[:window]]
            if {failure() for failure in trials} != {outcome.message}:
                return
            left = left[window:]
        self.recovery.stop(f"{draws} rows drawn at random failed like the first ones")

    def _trial(self, row: slice) -> Callable[[], str | None]:
        """Send one row; return what waits for the message with which it fails."""
        step = self.encode_step
        batch: Batch | None = None
        try:
            batch = self.encode(row)
            step = "forward"
            pending = self.runner.send(batch)
        except Exception as error:
            message = self._classify(row, batch, error, step).message
            return lambda: message
        return functools.partial(self._failure, row, batch, pending)

    def _failure(self, row: slice, batch: Batch, pending: Pending) -> str | None:
        step: Step = "forward"
        try:
            output = dict(pending())
            step = "output"
            once = Assembler(self.job.outputs, 1, nullable=True)
            self._add(once, slice(0, 1), output, batch)
        except Exception as error:
            return self._classify(row, batch, error, step).message
        return None


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


def _tokenizer(job: Job, code: UserCode) -> Any:
    if not job.inputs.tokenized:
        return None
    own = TokenizerDirectory(str(job.model.path), job.model.key)
    source = own if code.tokenizer is None else code.tokenizer
    with meter("load"):
        return load_tokenizer(source, cores=cores_of_process())
