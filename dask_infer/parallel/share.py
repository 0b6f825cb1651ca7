"""Small batches of several partitions as one forward.

Where a device runs one forward at a time, the feeders of a worker wait for it. Each
lays its batch down before it asks for the device, and whoever gets the device takes
what lies there with its own batch: a partition of ten rows rides with its neighbours,
and a forward is as large as the policy says however small the partitions are.

Only batches that cannot tell the difference are joined: of one job, tensors of one
dtype and row shape, padded to one length, without a `postprocess` that sees the frame.
Where a joined forward fails, each of its batches runs alone, so a feeder only ever sees
the errors of its own rows.

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

from dask_infer.batch.encode import Batch
from dask_infer.parallel.lane import Pending
from dask_infer.replica.cache import Replica
from dask_infer.spec import Job

Run: TypeAlias = Callable[[Batch], Pending]
Fields: TypeAlias = "list[tuple[Any, Any]]"


@dataclass(eq=False)
class Laid:
    """A batch that waits for the device."""

    batch: Batch
    #: What batches must have in common to be joined; None for one that goes alone.
    kind: tuple[Any, ...] | None
    #: Launches a forward in the lane of its feeder.
    run: Run
    #: Set by whoever ran it.
    pending: Pending | None = None


@dataclass(eq=False)
class Exchange:
    """Where the feeders of one job lay down their batches on the way to one device."""

    device: contextlib.AbstractContextManager[Any]
    #: Outputs may be overwritten by the next forward: take them while it is held.
    at_once: bool = False
    _waiting: deque[Laid] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, batch: Batch, run: Run, most: int) -> Pending:
        """Run a batch, with others that wait or by somebody else.

        Parameters
        ----------
        batch
            What to run.
        run
            Launches a forward; called with the device held.
        most
            Most rows of a forward.
        """
        own = Laid(batch, kind_of(batch), run)
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

    def _run(self, own: Laid, most: int) -> None:
        together = self._taken(own, most)
        if len(together) > 1:
            # Whatever it is, each feeder will meet the failure of its own rows alone.
            with contextlib.suppress(Exception):
                self._run_joined(own, together)
                return
        own.pending = own.run(own.batch)

    def _run_joined(self, own: Laid, together: list[Laid]) -> None:
        batch = joined([laid.batch for laid in together])
        shared = Shared(own.run(batch), batch.rows)
        if self.at_once:
            shared.copy()
        start = 0
        for laid in together:
            laid.pending = Part(self.device, shared, start, laid)
            start += laid.batch.rows

    def _taken(self, own: Laid, most: int) -> list[Laid]:
        """Batches to run now, the caller's first; the others in their order."""
        taken, rows = [own], own.batch.rows
        if own.kind is None:
            return taken
        with self._lock:
            for laid in self._waiting:
                fits = rows + laid.batch.rows <= most
                new = laid is not own and laid.pending is None
                if new and fits and laid.kind == own.kind:
                    taken.append(laid)
                    rows += laid.batch.rows
        return taken


class Shared:
    """Outputs of a joined forward, waited for once."""

    def __init__(self, pending: Pending, rows: int) -> None:
        self.rows = rows
        self._pending: Pending | None = pending
        self._lock = threading.Lock()
        self._fields: Fields = []

    def copy(self) -> None:
        """Take the outputs now, into memory of their own."""
        self._fields = [(name, value.clone()) for name, value in self.fields()]

    def fields(self) -> Fields:
        """Return the fields of all rows; whoever asks first waits for the device.

        Raises
        ------
        TypeError
            Where one has no rows to be divided.
        """
        with self._lock:
            if self._pending is not None:
                fields = list(self._pending.wait())
                if not all(_has_rows(value, self.rows) for _, value in fields):
                    raise TypeError("an output that has no rows cannot be divided")
                self._fields, self._pending = fields, None
            return self._fields


@dataclass(eq=False)
class Part:
    """The rows of one batch in a joined forward."""

    device: contextlib.AbstractContextManager[Any]
    shared: Shared
    start: int
    laid: Laid

    def wait(self) -> Iterable[tuple[Any, Any]]:
        """Return the batch's rows of each field, or run it alone where that fails."""
        rows = slice(self.start, self.start + self.laid.batch.rows)
        # Not in a handler, whose traceback would hold the joined forward's memory.
        with contextlib.suppress(Exception):
            return [(name, value[rows]) for name, value in self.shared.fields()]
        with self.device:
            pending = self.laid.run(self.laid.batch)
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


#: Exchanges in use, by replica and job; one goes with the last lane that used it.
_exchanges: weakref.WeakValueDictionary[tuple[int, int], Exchange] = (
    weakref.WeakValueDictionary()
)
_finding = threading.Lock()


def exchange_of(replica: Replica, job: Job, at_once: bool) -> Exchange:
    """Return the one exchange of a job's feeders at a replica.

    Where the device takes any number of forwards, the exchange has a lock of its own.
    """
    # The lanes that keep an exchange alive keep both of these; a process has one job
    # object for all partitions (`task`), and not every job can be hashed.
    key = (id(replica), id(job))
    with _finding:
        found = _exchanges.get(key)
        if found is None:
            device = replica.device
            alone = device.exclusive() if device.one_at_a_time else threading.Lock()
            found = _exchanges[key] = Exchange(alone, at_once)
        return found
