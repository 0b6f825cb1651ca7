"""Dynamic batching: small batches of several partitions run as one forward.

Where a device runs one forward at a time, the partitions of a worker wait for it. Each
submits its batch before it asks for the device, and the one that gets the device runs
the other requests with its own: a forward is as large as the policy allows, however
small the partitions are.

Only batches of equal form are joined: of one job, tensors of one dtype and row shape,
padded to one length, without a `postprocess` that sees the frame. Where a joined
forward fails, each of its batches runs alone, so a partition only sees the errors of
its own rows. Nothing is joined any more once an output had no rows to be divided by, or
after some failures in a row; where memory ran out, the size policy is informed.

Numbered, for two partitions A and B and a device that C holds:

1. A and B submit their batches and wait for the device.
2. C is done; A gets the device, runs both batches, and leaves B its rows.
3. B gets the device, finds its batch done, and releases the device.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.device.stream import Fields, Pending
from dask_infer.metrics.recorder import meter
from dask_infer.replica.cache import Replica
from dask_infer.spec import Job

Run: TypeAlias = Callable[[Batch], Pending]
TooMany: TypeAlias = Callable[[int], None]
Upload: TypeAlias = Callable[[Batch], Batch]

#: Joined forwards that fail in a row before nothing is joined any more.
FAILURES = 3


class Undivided(Exception):
    """An output has no rows by which it could be divided."""


@dataclass(eq=False)
class BatchRequest:
    """A batch that waits for the device."""

    batch: Batch
    #: What batches must have in common to be joined; None for one that runs alone.
    form: tuple[Any, ...] | None
    #: Launches a forward in the runner of its partition.
    run: Run
    #: Moves the batch to the device.
    upload: Upload
    #: Set by the thread that ran it.
    pending: Pending | None = None


@dataclass(eq=False)
class Batcher:
    """Joins the batches that the partitions of one job submit to one device."""

    device: contextlib.AbstractContextManager[Any]
    #: Outputs may be overwritten by the next forward: copy them while it is held.
    at_once: bool = False
    #: Joined forwards that failed since the last one that did not.
    failed: int = 0
    _waiting: deque[BatchRequest] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(
        self,
        batch: Batch,
        run: Run,
        most: int,
        too_many: TooMany = lambda rows: None,
        upload: Upload = lambda batch: batch,
    ) -> Pending:
        """Run a batch, with others that wait, or as a part of another's forward.

        A forward has `most` rows at most. `run` is called with the device held,
        `too_many` with the rows of a joined forward for which memory ran out.
        """
        own = BatchRequest(batch, form_of(batch), run, upload)
        with self._lock:
            self._waiting.append(own)
        try:
            with self.device:
                if own.pending is None:
                    self._run(own, most, too_many)
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._waiting.remove(own)
        assert own.pending is not None
        return own.pending

    def _run(self, own: BatchRequest, most: int, too_many: TooMany) -> None:
        requests = self._joinable(own, most)
        output = JoinedOutput(self, requests, too_many)
        if len(requests) == 1 or not output.start():
            own.pending = own.run(own.batch)
            return
        start = 0
        for request in requests:
            request.pending = partial(output.rows_of, request, start)
            start += request.batch.rows

    def _joinable(self, own: BatchRequest, most: int) -> list[BatchRequest]:
        """Return the requests to run now, the caller's first, the others in order."""
        joined, rows = [own], own.batch.rows
        if own.form is None or self.failed >= FAILURES:
            return joined
        with self._lock:
            for request in self._waiting:
                fits = rows + request.batch.rows <= most
                new = request is not own and request.pending is None
                if new and fits and request.form == own.form:
                    joined.append(request)
                    rows += request.batch.rows
        return joined


class JoinedOutput:
    """The output of a joined forward, waited for once."""

    def __init__(
        self, batcher: Batcher, requests: Sequence[BatchRequest], too_many: TooMany
    ) -> None:
        self.rows = sum(request.batch.rows for request in requests)
        self._batcher, self._requests = batcher, requests
        self._too_many = too_many
        self._pending: Pending | None = None
        self._lock = threading.Lock()
        self._fields: Fields | None = None

    def start(self) -> bool:
        """Launch the forward, by the first request; return whether that succeeded."""

        def launch() -> None:
            batches = [request.upload(request.batch) for request in self._requests]
            self._pending = self._requests[0].run(joined(batches))

        if not self._tried(launch):
            return False
        return not self._batcher.at_once or self.fields() is not None

    def fields(self) -> Fields | None:
        """Return the fields of all rows; the first caller waits for the device.

        None where it failed: each batch is to be run alone.
        """
        with self._lock:
            if self._pending is not None:
                if self._tried(self._wait):
                    self._batcher.failed = 0
                self._pending = None
            return self._fields

    def rows_of(self, request: BatchRequest, start: int) -> Fields:
        """Return one batch's rows of each field, or run it alone where that failed."""
        fields = self.fields()
        if fields is not None:
            rows = slice(start, start + request.batch.rows)
            return [(name, value[rows]) for name, value in fields]
        with self._batcher.device:
            pending = request.run(request.batch)
        return pending()

    def _wait(self) -> None:
        assert self._pending is not None
        with meter("forward"):
            fields = self._pending()
        if not all(_has_rows(value, self.rows) for _, value in fields):
            raise Undivided
        if self._batcher.at_once:
            fields = [(name, value.clone()) for name, value in fields]
        self._fields = fields

    def _tried(self, work: Callable[[], None]) -> bool:
        """Do it; each partition will see what fails with its own rows alone."""
        try:
            work()
            return True
        except Undivided:
            self._batcher.failed = FAILURES
            return False
        except Exception as error:
            self._batcher.failed += 1
            too_many = is_out_of_memory(error)
        # Not in the handler, whose traceback holds the joined forward's memory.
        if too_many:
            self._too_many(self.rows)
        return False


def form_of(batch: Batch) -> tuple[Any, ...] | None:
    """Return what the batches of a joined forward have in common, if it can be one."""
    named = [*enumerate(batch.args), *sorted(batch.kwargs.items())]
    if not named or not all(_has_rows(value, batch.rows) for _, value in named):
        return None
    return tuple((name, value.dtype, value.shape[1:]) for name, value in named)


def _has_rows(value: Any, rows: int) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return False
    return value.ndim > 0 and len(value) == rows


def joined(batches: Sequence[Batch]) -> Batch:
    """Return the rows of several batches of one form as one batch."""
    columns = zip(*(batch.args for batch in batches), strict=True)
    args = tuple(torch.cat(values) for values in columns)
    kwargs = {
        name: torch.cat([batch.kwargs[name] for batch in batches])
        for name in batches[0].kwargs
    }
    return Batch(args, kwargs, rows=sum(batch.rows for batch in batches))


#: Batchers in use, by replica and job; one goes with the last runner that used it.
_batchers: weakref.WeakValueDictionary[tuple[int, int], Batcher] = (
    weakref.WeakValueDictionary()
)
_finding = threading.Lock()


def batcher_of(replica: Replica, job: Job, at_once: bool) -> Batcher:
    """Return the one batcher of a job's partitions at a replica.

    Where the device takes any number of forwards, the batcher has a lock of its own.
    """
    # The runners that keep a batcher alive keep both of these; a process has one job
    # object for all partitions (`run_partition`), and not every job can be hashed.
    key = (id(replica), id(job))
    with _finding:
        found = _batchers.get(key)
        if found is None:
            device = replica.device
            lock = device.exclusive() if device.one_at_a_time else threading.Lock()
            found = _batchers[key] = Batcher(lock, at_once)
        return found
