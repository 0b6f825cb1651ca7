"""The runner to the replica of this process: no message, and on the CPU no copy."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from dask_infer import config
from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.sizing.hill_climber import FixedSize
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.device.device import Device
from dask_infer.device.stream import map_tensors
from dask_infer.errors import ModelLoadError
from dask_infer.faults.deadline import DeadlineExceeded, within
from dask_infer.metrics.recorder import add, meter
from dask_infer.model.shapes.undecided import decided
from dask_infer.replica.cache import Replica, cache
from dask_infer.replica.worker_place import Place
from dask_infer.run.dynamic_batching import Batcher, batcher_of
from dask_infer.run.postprocess import Postprocess
from dask_infer.run.runner import Pending
from dask_infer.spec import Code, Inputs, Job
from dask_infer.spec.model_spec import Interface
from dask_infer.spec.token_rules import TokenRules

T = TypeVar("T")
logger = logging.getLogger(__name__)


def shares(device: Device) -> bool:
    """Whether batches of several partitions are joined on this device."""
    wanted = config.get("batch.share")
    return device.one_at_a_time if wanted == "auto" else bool(wanted)


@contextlib.contextmanager
def local_runner(job: Job, code: Code, place: Place) -> Iterator[LocalRunner]:
    """Lease the replica of this process for the batches of one partition."""
    with contextlib.ExitStack() as leases:
        yield LocalRunner(job, code, place, leases)


class LocalRunner:
    """Batches of one partition through one leased replica, or its successors."""

    def __init__(
        self, job: Job, code: Code, place: Place, leases: contextlib.ExitStack
    ) -> None:
        self.job = job
        self.place = place
        self._leases = leases
        self.replica = self._lease()
        #: The replica may be stuck: the next batch needs another one.
        self._stuck = False
        self.finish = Postprocess(job, code)
        self.stream = self.replica.device.stream()
        #: Whether forwards are for one partition only: `postprocess` sees its frame,
        #: and who is stuck in a forward must be known.
        self._alone = (
            not job.row_wise
            or job.timeout is not None
            or code.postprocess is not None
            or not shares(self.replica.device)
        )
        #: Forwards may run in other threads than the partition's: in one that a
        #: timeout can leave, in that of a neighbour, in a library's own.
        self._elsewhere = (
            job.timeout is not None or not self._alone or self.interface != "tensor"
        )
        #: Kept, so that the batcher lives as long as runners use it.
        self._batcher: Batcher | None = None
        #: Policies that this partition is batched by.
        self._size: FixedSize | None = None
        #: Most rows of a forward that the user allows, or the model takes.
        self._bound: int | None = None
        self._budget: TokenBudget | None = None
        #: Tensors among them are moved to the device once.
        self.call_kwargs = self._on_device(code.call_kwargs)

    @property
    def interface(self) -> Interface:
        """What the model wants to be called with."""
        return self.replica.loaded.interface

    @property
    def floating(self) -> torch.dtype | None:
        """The model's floating dtype."""
        return self.replica.loaded.floating

    @property
    def token_rules(self) -> TokenRules:
        """How the called method takes tokens."""
        return self.replica.loaded.token_rules(self.job.method)

    @property
    def inputs(self) -> Inputs:
        """The job's inputs; what was left open is found out on the loaded model."""
        job = self.job
        if job.undecided is None:
            return job.inputs
        return decided(
            job.inputs, job.undecided, self.replica.loaded, job.method, self.call_kwargs
        )

    @property
    def dtypes(self) -> Sequence[tuple[str, str]]:
        """Names and dtypes of the arguments that the model casts."""
        return self.replica.loaded.dtypes

    @property
    def window(self) -> int:
        """Two where the next forward runs while outputs are copied back.

        One on the CPU: a model may write its next output into the same memory.
        """
        return 2 if self.stream.overlaps else 1

    @property
    def microbatch(self) -> None:
        """None: the model is in one piece."""

    @property
    def where(self) -> str:
        """Device and worker."""
        return f"{self.replica.device} of worker {self.place.worker}"

    def batch_size(
        self, signature: Any, bytes_per_row: float, bound: int | None
    ) -> FixedSize:
        """Return the replica's own policy, so that what it learned stays known."""
        self._bound = bound
        self._size = self.replica.sizes.rows(
            signature, bound, bytes_per_row, self._free_bytes
        )
        return self._size

    def token_budget(self, signature: Any, bound: int | None) -> TokenBudget:
        """Return the replica's own policy for padded batches."""
        self._budget = self.replica.sizes.tokens(signature, bound, self._free_bytes)
        return self._budget

    def send(self, batch: Batch) -> Pending:
        """Launch the forward of a batch, and `postprocess` on its output."""
        if self._stuck:
            self._renew()
        batcher = self._find_batcher()
        if batcher is not None:
            most = self._most_rows(batch)
            too_many = partial(self._too_many, batch)
            with meter("wait"):
                return batcher.send(batch, self._forward, most, too_many)
        with meter("wait"), self.replica.device.exclusive():
            pending = self._forward(batch)
        return _Timed(self, pending) if self.stream.overlaps else pending

    def clock(self) -> float:
        """Return the device's clock where this thread computes, else wall time."""
        if self._elsewhere:
            return time.perf_counter()
        return self.replica.device.clock()

    def count(self, rows: int) -> None:
        """Add served rows to the replica's."""
        self.replica.count(rows)

    def discard(self) -> None:
        """Have the next batch, and whoever comes next, load a fresh replica."""
        cache.discard(self.replica)
        self._stuck = True

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether memory ran out on the device or the host."""
        return self.replica.device.is_out_of_memory(error)

    def first_out_of_memory(self) -> bool:
        """Whether this replica never ran out of memory before."""
        return self.replica.first_out_of_memory()

    def release_memory(self) -> None:
        """Give the device's freed blocks back."""
        self.replica.device.release_memory()

    def _find_batcher(self) -> Batcher | None:
        """Where batches of several partitions meet; None where they must not."""
        if self._alone:
            return None
        at_once = not self.stream.overlaps
        self._batcher = batcher_of(self.replica, self.job, at_once)
        return self._batcher

    def _too_many(self, batch: Batch, rows: int) -> None:
        """Have the policy hear that a joined forward of so many rows was too large."""
        self.release_memory()
        policy = self._budget if batch.padding.width else self._size
        if policy is None:
            return
        size = policy.on_out_of_memory(rows * (batch.padding.width or 1))
        add("halvings")
        if self.first_out_of_memory():
            logger.warning(
                'model "%s" ran out of memory on %s with %d rows; going on with %d %s',
                self.job.model.name, self.where, rows, size, policy.unit,
            )  # fmt: skip

    def _most_rows(self, batch: Batch) -> int:
        """Most rows of a forward that this batch is part of."""
        if batch.padding.width and self._budget is not None:
            most = self._budget.size // batch.padding.width
            return most if self._bound is None else min(most, self._bound)
        return self._size.size if self._size is not None else batch.rows

    def _lease(self) -> Replica:
        job = self.job
        lease = cache.lease(
            job.model,
            self.place,
            device=job.device,
            dtype=job.dtype,
            timeout=job.timeout,
        )
        with meter("load"):
            return self._leases.enter_context(lease)

    def _renew(self) -> None:
        """Leave the replica to the thread that is stuck in it."""
        known = self.replica
        self._leases.close()
        self.replica = self._lease()
        self.replica.learn_from(known)
        self._stuck = False

    def _free_bytes(self) -> int:
        """Bytes that a forward may take; on the CPU no more than the worker may."""
        free = self.replica.device.free_bytes()
        own = self.place.free_bytes()
        on_host = self.replica.device.torch_device.type == "cpu"
        return min(free, own) if on_host and own is not None else free

    def _forward(self, batch: Batch) -> Pending:
        with meter("forward"):
            pending: Pending = self._in_time(lambda: self._launch(batch))
        add("forwards")
        return pending

    def _launch(self, batch: Batch) -> Pending:
        model = self.replica.loaded
        self.replica.device.enter_forward(self.place.cpu_threads)
        staged = self.stream.upload(batch.args, batch.kwargs)
        args, kwargs = self.stream.enter(staged)
        output = model.call(args, {**kwargs, **self.call_kwargs}, self.job.method)
        return self.stream.download(self.finish(output, batch, args, kwargs))

    def _in_time(self, work: Callable[[], T]) -> T:
        name, timeout = self.job.model.name, self.job.timeout
        try:
            return within(timeout, work, what=f"forward of {name}")
        except DeadlineExceeded:
            if self.job.model.compile is None or self.replica.rows:
                raise
            # The first forward compiles: no row is to blame, the model is not there.
            self.discard()
            raise ModelLoadError(
                f'model "{name}" was not compiled within {timeout:g} s on '
                f"{self.where}: raise timeout=, or pass the model uncompiled"
            ) from None

    def _on_device(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        target = self.replica.loaded.device
        if self.interface != "tensor":
            return kwargs
        return {k: map_tensors(lambda t: t.to(target), v) for k, v in kwargs.items()}


class _Timed:
    """Outputs whose copies, too, must end in time."""

    def __init__(self, runner: LocalRunner, pending: Pending) -> None:
        self._runner = runner
        self._pending = pending

    def wait(self) -> Iterable[tuple[Any, Any]]:
        """Wait for the copies."""
        with meter("forward"):
            return self._runner._in_time(self._pending.wait)
