"""Small batches of several partitions as one forward.

Where a device runs one forward at a time, the feeders of a worker wait for it. Each
lays its batch down before it asks for the device, and whoever gets the device takes
what lies there with its own batch: a partition of ten rows rides with its neighbours,
and a forward is as large as the policy says however small the partitions are.

Only batches that cannot tell the difference are joined: of one job, tensors of one
dtype and row shape, padded to one length, without a `postprocess` that sees the frame.
Where a joined forward fails, each of its batches runs alone, so a feeder only ever sees
the errors of its own rows. What no joined forward can do is not tried for ever: nothing
is joined any more once an output could not be divided, or after some failures in a row;
where memory ran out, the policy hears of it.

Numbered, for two feeders A and B and a device that C holds:

1. A and B lay down their batches and wait for the device.
2. C is done; A gets the device, takes both batches, runs them, and hands B its rows.
3. B gets the device, finds its batch done, and gives the device back.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.metrics.recorder import meter
from dask_infer.replica.cache import Replica
from dask_infer.run.runner import Pending
from dask_infer.spec import Job

Run: TypeAlias = Callable[[Batch], Pending]
TooMany: TypeAlias = Callable[[int], None]
Fields: TypeAlias = "list[tuple[Any, Any]]"


#: Joined forwards that fail in a row before nothing is joined any more.
FAILURES = 3


class Undivided(Exception):
    """An output has no rows by which it could be divided."""


@dataclass(eq=False)
class BatchRequest:
    """A batch that waits for the device."""

    batch: Batch
    #: What batches must have in common to be joined; None for one that goes alone.
    kind: tuple[Any, ...] | None
    #: Launches a forward in the runner of its feeder.
    run: Run
    #: Called with the rows of a joined forward for which memory ran out.
    too_many: TooMany
    #: Set by whoever ran it.
    pending: Pending | None = None


@dataclass(eq=False)
class Batcher:
    """Where the feeders of one job lay down their batches on the way to one device."""

    device: contextlib.AbstractContextManager[Any]
    #: Outputs may be overwritten by the next forward: take them while it is held.
    at_once: bool = False
    #: Whether an error says that memory ran out.
    is_out_of_memory: Callable[[BaseException], bool] = is_out_of_memory
    #: Joined forwards that failed since the last one that did not.
    failed: int = 0
    _waiting: deque[BatchRequest] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(
        self, batch: Batch, run: Run, most: int, too_many: TooMany = lambda rows: None
    ) -> Pending:
        """Run a batch, with others that wait or by somebody else.

        Parameters
        ----------
        batch
            What to run.
        run
            Launches a forward; called with the device held.
        most
            Most rows of a forward.
        too_many
            Called with the rows of a joined forward for which memory ran out.
        """
        own = BatchRequest(batch, kind_of(batch), run, too_many)
        with self._lock:
            self._waiting.append(own)
        try:
            with self.device:
                if own.pending is None:
                    self._run(own, most)
        finally:
            with self._lock, contextlib.suppress(ValueError):
                self._waiting.remove(own)
        assert own.pending is not None
        return own.pending

    def _run(self, own: BatchRequest, most: int) -> None:
        together = self._taken(own, most)
        if len(together) > 1:
            shared = JoinedOutput(self, together)
            if shared.start(own) and (not self.at_once or shared.copy()):
                start = 0
                for request in together:
                    request.pending = Slice(self.device, shared, start, request)
                    start += request.batch.rows
                return
        own.pending = own.run(own.batch)

    def _taken(self, own: BatchRequest, most: int) -> list[BatchRequest]:
        """Batches to run now, the caller's first; the others in their order."""
        taken, rows = [own], own.batch.rows
        if own.kind is None or self.failed >= FAILURES:
            return taken
        with self._lock:
            for request in self._waiting:
                fits = rows + request.batch.rows <= most
                new = request is not own and request.pending is None
                if new and fits and request.kind == own.kind:
                    taken.append(request)
                    rows += request.batch.rows
        return taken


class JoinedOutput:
    """A joined forward, and its outputs, waited for once."""

    def __init__(self, batcher: Batcher, together: Sequence[BatchRequest]) -> None:
        self.rows = sum(request.batch.rows for request in together)
        self._batcher, self._together = batcher, together
        self._pending: Pending | None = None
        self._lock = threading.Lock()
        self._fields: Fields | None = None

    def start(self, own: BatchRequest) -> bool:
        """Launch it; return whether that went well."""

        def launch() -> None:
            self._pending = own.run(
                joined([request.batch for request in self._together])
            )

        return self._tried(launch)

    def copy(self) -> bool:
        """Take the outputs now, into memory of their own; return whether it could."""
        fields = self.fields()
        if fields is None:
            return False
        self._fields = [(name, value.clone()) for name, value in fields]
        return True

    def fields(self) -> Fields | None:
        """Return the fields of all rows; whoever asks first waits for the device.

        None where it failed: each batch is to be run alone.
        """
        with self._lock:
            if self._pending is not None:
                if self._tried(self._wait):
                    self._batcher.failed = 0
                self._pending = None
            return self._fields

    def _wait(self) -> None:
        assert self._pending is not None
        with meter("forward"):
            fields = list(self._pending.wait())
        if not all(_has_rows(value, self.rows) for _, value in fields):
            raise Undivided
        self._fields = fields

    def _tried(self, work: Callable[[], None]) -> bool:
        """Do it; each feeder will meet whatever fails with its own rows alone."""
        try:
            work()
            return True
        except Undivided:
            self._batcher.failed = FAILURES
            return False
        except Exception as error:
            self._batcher.failed += 1
            too_many = self._batcher.is_out_of_memory(error)
        # Not in the handler, whose traceback holds the joined forward's memory.
        if too_many:
            self._together[0].too_many(self.rows)
        return False


@dataclass(eq=False)
class Slice:
    """The rows of one batch in a joined forward."""

    device: contextlib.AbstractContextManager[Any]
    shared: JoinedOutput
    start: int
    request: BatchRequest

    def wait(self) -> Iterable[tuple[Any, Any]]:
        """Return the batch's rows of each field, or run it alone where that fails."""
        rows = slice(self.start, self.start + self.request.batch.rows)
        fields = self.shared.fields()
        if fields is not None:
            return [(name, value[rows]) for name, value in fields]
        with self.device:
            pending = self.request.run(self.request.batch)
        return pending.wait()


def kind_of(batch: Batch) -> tuple[Any, ...] | None:
    """Return what the batches of a joined forward have in common, if it can be one."""
    named = [*enumerate(batch.args), *sorted(batch.kwargs.items())]
    if not named or not all(_has_rows(value, batch.rows) for _, value in named):
        return None
    return tuple((name, value.dtype, value.shape[1:]) for name, value in named)


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == rows


def joined(batches: Sequence[Batch]) -> Batch:
    """Return the rows of several batches of one kind as one batch."""
    first = batches[0]
    args = tuple(
        torch.cat([batch.args[place] for batch in batches])
        for place in range(len(first.args))
    )
    kwargs = {
        name: torch.cat([batch.kwargs[name] for batch in batches])
        for name in first.kwargs
    }
    return Batch(args, kwargs, rows=sum(batch.rows for batch in batches))


#: Batchers in use, by replica and job; one goes with the last runner that used it.
_batchers: weakref.WeakValueDictionary[tuple[int, int], Batcher] = (
    weakref.WeakValueDictionary()
)
_finding = threading.Lock()


def batcher_of(replica: Replica, job: Job, at_once: bool) -> Batcher:
    """Return the one batcher of a job's feeders at a replica.

    Where the device takes any number of forwards, the batcher has a lock of its own.
    """
    # The runners that keep a batcher alive keep both of these; a process has one job
    # object for all partitions (`task`), and not every job can be hashed.
    key = (id(replica), id(job))
    with _finding:
        found = _batchers.get(key)
        if found is None:
            device = replica.device
            alone = device.exclusive() if device.one_at_a_time else threading.Lock()
            memory = device.is_out_of_memory
            found = _batchers[key] = Batcher(alone, at_once, memory)
        return found
