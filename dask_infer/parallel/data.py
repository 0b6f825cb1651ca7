"""Data-parallel: the batches of a partition through the replica of this process."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from dask_infer.batch.assemble import Assembler
from dask_infer.batch.encode import Batch, Encoder
from dask_infer.batch.fields import fields
from dask_infer.device.stream import Pending, map_tensors
from dask_infer.errors import InferError, PartitionError
from dask_infer.fault.deadline import DeadlineExceeded, within
from dask_infer.model.store import read_blob
from dask_infer.model.tokenizers import load_tokenizer
from dask_infer.parallel.work import Rows, Work, plan_work
from dask_infer.replica.attach import attach
from dask_infer.replica.cache import Replica, cache
from dask_infer.replica.place import Place, current_place, current_worker
from dask_infer.spec import Blob, Code, Job

logger = logging.getLogger(__name__)


def predict_rows(frame: pd.DataFrame, job: Job) -> dict[str, Any]:
    """Return the output columns of `frame`'s rows, in their order."""
    worker = current_worker()
    if worker is not None:
        attach(worker)
    place = current_place()
    with cache.lease(
        job.model, place, device=job.device, dtype=job.dtype, timeout=job.timeout
    ) as replica:
        return _Run(frame, job, replica, place).columns()


class _Run:
    """One partition on its way through one replica."""

    def __init__(
        self, frame: pd.DataFrame, job: Job, replica: Replica, place: Place
    ) -> None:
        self.job = job
        self.code = _read_code(job.code)
        self.replica = replica
        self.place = place
        self.frame = frame
        self.stream = replica.device.stream()
        #: Tensors among them are moved to the device once.
        self.call_kwargs = self._on_device(self.code.call_kwargs)
        self.gives_inputs = takes_inputs(self.code.postprocess)
        self.encoder = Encoder(
            frame,
            job.inputs,
            interface=replica.loaded.interface,
            floating=replica.loaded.floating,
            preprocess=self.code.preprocess,
            tokenizer=self._tokenizer(),
            accepts=replica.loaded.accepts_of(job.method),
        )
        self.assembler = Assembler(
            job.outputs,
            len(frame),
            nullable=job.on_error != "raise",
            side=self.encoder.side,
        )
        self.work: Work = plan_work(
            len(frame), self.encoder, job, replica, place.free_bytes()
        )
        #: The batch whose outputs are on their way back.
        self.pending: tuple[Rows, Batch, Pending] | None = None
        self.finished = time.perf_counter()

    def columns(self) -> dict[str, Any]:
        """Run every batch and put the outputs in the rows' order."""
        while (rows := self.work.take()) is not None:
            launched = self._launch(rows)
            self._collect()
            if launched is None:
                # Here no traceback holds the failed forward's memory any more.
                self._retry_smaller(rows)
                continue
            self.pending = (rows, *launched)
            if not self.stream.overlaps:
                self._collect()
        self._collect()
        if self.encoder.truncated:
            logger.warning(
                "%d of %d texts were truncated at the tokenizer's model_max_length",
                self.encoder.truncated,
                len(self.frame),
            )
        return self.assembler.columns()

    def _on_device(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        target = self.replica.loaded.device
        if self.replica.loaded.interface != "tensor":
            return kwargs
        return {k: map_tensors(lambda t: t.to(target), v) for k, v in kwargs.items()}

    def _tokenizer(self) -> Any:
        if not self.job.inputs.tokenized:
            return None
        return load_tokenizer(self.code.tokenizer, directory=self.job.model.path)

    def _encode(self, rows: Rows) -> Batch:
        if self.code.preprocess is None:
            return self.encoder.batch(rows)
        try:
            return self.encoder.batch(rows)
        except InferError:
            raise
        except Exception as error:
            raise self._failure("preprocess", rows, None, error) from error

    def _launch(self, rows: Rows) -> tuple[Batch, Pending] | None:
        """Start a batch; None where it did not fit the memory."""
        try:
            batch = self._encode(rows)
            return batch, self._forward(rows, batch)
        except Exception as error:
            if not self.replica.device.is_out_of_memory(error):
                raise
            if not self.job.row_wise or row_count(rows) == 1:
                raise self._out_of_memory(rows, error) from error
            return None

    def _forward(self, rows: Rows, batch: Batch) -> Pending:
        device, model = self.replica.device, self.replica.loaded

        def forward() -> Pending:
            device.enter_forward(self.place.cpu_threads)
            staged = self.stream.upload(batch.args, batch.kwargs)
            args, kwargs = self.stream.enter(staged)
            output = model.call(args, {**kwargs, **self.call_kwargs}, self.job.method)
            output = self._postprocess(output, batch, args, kwargs)
            return self.stream.download(_wanted(output, self.job))

        with device.exclusive():
            pending: Pending = self._guarded(forward, rows, batch)
        return pending

    def _guarded(self, work: Callable[[], Any], rows: Rows, batch: Batch) -> Any:
        """Run a step of the forward under the job's timeout; say what failed."""
        try:
            return within(
                self.job.timeout, work, what=f"forward of {self.job.model.name}"
            )
        except DeadlineExceeded as error:
            cache.discard(self.replica)
            advice = "raise timeout=, or pass a smaller batch_size="
            raise self._failure("forward", rows, batch, error, advice) from None
        except InferError:
            raise
        except Exception as error:
            if self.replica.device.is_out_of_memory(error):
                raise
            raise self._failure("forward", rows, batch, error) from error

    def _postprocess(
        self, output: Any, batch: Batch, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        postprocess = self.code.postprocess
        if postprocess is None:
            return output
        inputs = (as_called(args, kwargs),) if self.gives_inputs else ()
        # The output is an inference tensor: only here may it be changed in place.
        with torch.inference_mode():
            return postprocess(output, batch.frame, *inputs)

    def _collect(self) -> None:
        """Wait for the outputs of the batch before this one and store them."""
        if self.pending is None:
            return
        rows, batch, pending = self.pending
        self.pending = None
        output = dict(self._guarded(pending.wait, rows, batch))
        self.assembler.add(rows, output, batch.lengths, batch.padded)
        count = row_count(rows)
        now = time.perf_counter()
        self.work.observe(count, now - self.finished)
        self.finished = now
        self.replica.count(count)

    def _retry_smaller(self, rows: Rows) -> None:
        """After out-of-memory, put the same rows back in smaller batches."""
        device, count = self.replica.device, row_count(rows)
        device.release_memory()
        size = self.work.halve(rows)
        if self.replica.first_out_of_memory():
            logger.warning(
                'model "%s" ran out of memory on %s with %d rows; going on with %d. '
                "Pass batch_size=%d to start there",
                self.job.model.name, device, count, size, size,
            )  # fmt: skip

    def _out_of_memory(self, rows: Rows, error: Exception) -> PartitionError:
        advice = (
            "one row does not fit: use a larger device or a smaller dtype="
            if row_count(rows) == 1
            else "row_wise=False forbids smaller batches: pass a smaller batch_size="
        )
        return self._failure("forward", rows, None, error, advice)

    def _failure(
        self,
        stage: str,
        rows: Rows,
        batch: Batch | None,
        error: BaseException,
        advice: str = "",
    ) -> PartitionError:
        """Say what failed, on which rows, where, and why."""
        labels = self.frame.index[rows]
        span = f"row {labels[0]!r}" if len(labels) == 1 else (
            f"{len(labels)} rows, {labels[0]!r} to {labels[-1]!r}"
        )  # fmt: skip
        inputs = f", inputs {batch.shapes()}" if batch is not None else ""
        reason = f"{type(error).__name__}: {error}"
        return PartitionError(
            f'model "{self.job.model.name}" failed in {stage} of {span}{inputs}, on '
            f"{self.replica.device} of worker {self.place.worker}: {reason}"
            + (f"; {advice}" if advice else "")
        )


def row_count(rows: Rows) -> int:
    """Rows of a batch."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def takes_inputs(postprocess: Callable[..., Any] | None) -> bool:
    """Whether `postprocess` wants the model's inputs as its third argument.

    A third parameter with a default is the user's own, unless it is called "inputs".
    """
    if postprocess is None:
        return False
    try:
        signature = inspect.signature(postprocess)
        signature.bind(None, None, None)
    except (TypeError, ValueError):
        return False
    third = list(signature.parameters.values())[2:3]
    own = bool(third) and third[0].default is not inspect.Parameter.empty
    return not own or third[0].name == "inputs"


def as_called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what the model was called with: one tensor, a tuple, or a dict."""
    if kwargs:
        return kwargs
    return args[0] if len(args) == 1 else args


def _wanted(output: Any, job: Job) -> list[tuple[Any, Any]]:
    """Return the parts of an output that become columns; only they are copied back."""
    found = fields(output)
    names = {column.field for column in job.outputs.columns}
    return [(name, value) for name, value in found if name in names] or found


_codes: dict[str, Code] = {}


def _read_code(blob: Blob) -> Code:
    code = _codes.get(blob.key)
    if code is None:
        if len(_codes) >= 64:
            _codes.clear()
        code = _codes[blob.key] = read_blob(blob)
    return code
