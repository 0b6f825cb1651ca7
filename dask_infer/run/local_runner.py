"""Runs batches in the replica of this process: no message, and on the CPU no copy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from dask_infer import config
from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.outputs.pick import pick
from dask_infer.device.stream import Fields, Pending, map_tensors
from dask_infer.errors import ModelLoadError
from dask_infer.faults.bisect import Rows
from dask_infer.faults.classify import StepFailed
from dask_infer.faults.deadline import DeadlineExceeded, within
from dask_infer.metrics.recorder import add, meter
from dask_infer.model.shapes.propagate import decided
from dask_infer.replica.cache import Replica, cache
from dask_infer.replica.worker_place import Place
from dask_infer.run.dynamic_batching import batcher_of
from dask_infer.run.postprocess import Postprocess
from dask_infer.run.process_runner import ProcessRunner
from dask_infer.spec import Job, UserCode

T = TypeVar("T")


class LocalRunner(ProcessRunner):
    """Batches of one partition through one leased replica, or its successors.

    The replica of this process is leased until `leases` is closed.
    """

    def __init__(
        self, job: Job, code: UserCode, place: Place, leases: contextlib.ExitStack
    ) -> None:
        self.job = job
        self.place = place
        self._leases = leases
        self.replica = self._lease()
        self.device = device = self.replica.device
        model = self.model
        #: The replica may be stuck: the next batch needs another one.
        self._stuck = False
        self.observed_kind = device.torch_device.type
        self.stream = device.stream()
        self.pin = self._pin if self.stream.copies else None
        self.interface, self.floating = model.interface, model.floating
        self.token_rules = model.token_rules(job.method)
        self.dtypes = model.dtypes
        self.inputs = job.inputs
        if job.undecided is not None:
            options = (job.method, code.call_kwargs)
            self.inputs = decided(job.inputs, job.undecided, model, *options)
        #: Tensors among them are moved to the device once.
        self.call_kwargs: dict[str, Any] = dict(code.call_kwargs)
        if self.interface == "tensor":
            self.call_kwargs = map_tensors(
                lambda t: t.to(model.device), code.call_kwargs
            )
        self._postprocess = None if code.postprocess is None else Postprocess(job, code)
        self._device_lock = device.exclusive()
        # Forwards are for one partition only where `postprocess` sees its frame, or
        # where it must be known which one is stuck.
        self._batcher = None
        alone = (
            not job.row_wise or job.timeout is not None or code.postprocess is not None
        )
        wanted = config.get("batch.share")
        if not alone and (device.one_at_a_time if wanted == "auto" else wanted):
            self._batcher = batcher_of(self.replica, job, not self.stream.overlaps)
        device.enter_forward(place.cpu_threads)
        # Forwards may run in other threads than the partition's: in one that a timeout
        # can leave, in that of another partition, in a library's own.
        own_thread = job.timeout is None and self._batcher is None
        if own_thread and self.interface == "tensor":
            self.clock = device.clock

    @property
    def window(self) -> int:
        """Two where the next forward runs while outputs are copied back.

        One on the CPU: a model may write its next output into the same memory.
        """
        return 2 if self.stream.overlaps else 1

    def _pin(self, batch: Batch) -> Batch:
        """Pin a batch, which takes as long as a copy: the device need not wait."""
        batch.args, batch.kwargs = self.stream.pin(batch.args, batch.kwargs)
        return batch

    def send(self, batch: Batch, rows: Rows | None = None) -> Pending:
        """Launch the forward of a batch, and `postprocess` on its output."""
        if self._stuck:
            self._renew()
        if self._batcher is not None:
            too_many = partial(self._too_many, batch)
            most = self._most_rows(batch)
            with meter("wait"):
                return self._batcher.send(
                    batch, self._forward, most, too_many, self._uploaded
                )
        with meter("wait"), self._device_lock:
            pending = self._forward(batch)
        return partial(self._copied, pending) if self.stream.overlaps else pending

    def count(self, rows: int) -> None:
        """Add served rows to the replica's."""
        with self.replica.counting:  # no call into another file (benchmarks/noop)
            self.replica.rows += rows

    def discard(self) -> None:
        """Have the next batch, and the next lease, load a fresh replica."""
        cache.discard(self.replica)
        self._stuck = True

    def origin(self, error: BaseException) -> tuple[str | None, int | None]:
        """Return this worker, and no stage."""
        return self.place.worker, None

    def _forward(self, batch: Batch) -> Pending:
        """Launch a forward within the timeout."""
        with meter("forward"):
            if self.job.timeout is None:
                pending = self._launch(batch)
            else:
                pending = self._in_time(lambda: self._launch(batch))
        add("forwards")
        return pending

    def _uploaded(self, batch: Batch) -> Batch:
        """Return a batch on the device, which joins batches faster than the host."""
        args, kwargs = self.stream.upload(batch.args, batch.kwargs)
        return Batch(args, kwargs, rows=batch.rows)

    def _copied(self, pending: Pending) -> Fields:
        """Wait for outputs, whose copies, too, must end in time."""
        with meter("forward"):
            return self._in_time(pending)

    def _launch(self, batch: Batch) -> Pending:
        """Transfer a batch, call the model, and select its fields."""
        args, kwargs, copies = batch.args, batch.kwargs, self.stream.copies
        if copies:
            args, kwargs = self.stream.upload(args, kwargs)
        options = {**kwargs, **self.call_kwargs}
        output = self.model.call(args, options, self.job.method)
        if self._postprocess is not None:
            fields = self._postprocess(output, batch, args, kwargs)
        else:  # another file is not entered for each batch (benchmarks/noop)
            try:
                fields = pick(output, self.job.outputs)
            except Exception as error:
                raise StepFailed("output", error) from error
        return self.stream.download(fields) if copies else lambda: fields

    def _in_time(self, work: Callable[[], T]) -> T:
        name, timeout = self.job.model.name, self.job.timeout

        def run() -> T:
            self.device.enter_forward(self.place.cpu_threads)
            return work()

        try:
            return within(timeout, run, what=f"forward of {name}")
        except DeadlineExceeded:
            if self.job.model.compile is None or self.replica.rows:
                raise
            # The first forward compiles: no row is the cause, the model is not there.
            self.discard()
            raise ModelLoadError(
                f'model "{name}" was not compiled within {timeout:g} s on '
                f"{self.where}: raise timeout=, or pass the model uncompiled"
            ) from None

    def _too_many(self, batch: Batch, rows: int) -> None:
        """Inform the policy that a joined forward of so many rows was too large."""
        self.release_memory()
        self.shrink(rows, batch.padding.width)
        add("halvings")

    def _most_rows(self, batch: Batch) -> int:
        """Most rows of a forward that this batch is part of."""
        if batch.padding.width and self._budget is not None:
            most = self._budget.size // batch.padding.width
            return most if self._bound is None else min(most, self._bound)
        return self._size.size

    def _lease(self) -> Replica:
        job = self.job
        lease = cache.lease(
            job.model,
            self.place,
            device=job.device,
            dtype=job.dtype,
            timeout=job.timeout,
        )
        replica = self._leases.enter_context(lease)
        self.model, self.sizes = replica.loaded, replica.sizes
        return replica

    def _renew(self) -> None:
        """Leave the replica to the thread that is stuck in it."""
        known = self.sizes
        self._leases.close()
        with meter("load"):
            self.replica = self._lease()
        self.sizes.adopt(known)
        self._stuck = False
