"""The passes of one model's layer groups over all batches that wait in this process.

A partition runs its batches through the first group as it encodes them, and waits. Once
all partitions of the process wait, a pass takes all of their batches through the other
groups. The threads that wait do its work: each takes the next batch, whosever it is.
Invariants, guarded by one lock:

1. At most one pass runs. Its group changes once no batch is left to be run
   through it, and none is running.
2. One thread changes the group, without the lock; the others wait.
3. No thread holds a group while waiting for other partitions or for memory.

A batch that fails in a group goes no further: its runner finds out which of its rows
fail there, and runs it again.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

from dask_infer._dask import count_tasks_like_this
from dask_infer.batch.inputs.batch import Batch
from dask_infer.device.stream import Fields
from dask_infer.metrics.recorder import meter
from dask_infer.model.split.chain import Chain
from dask_infer.replica.cache import Replica, cache
from dask_infer.replica.sizes import Sizes
from dask_infer.replica.worker_place import current_worker, partitions_at_once
from dask_infer.run.sweep.activations import Activations, Stored
from dask_infer.run.sweep.group_loader import GroupLoader

logger = logging.getLogger(__name__)

#: Seconds between two looks of a thread that waits.
POLL_SECONDS = 0.1
#: Part of the last pass that a pass waits for partitions that may come: those of other
#: threads begin their reading together, and end it one after the other.
PATIENCE = 0.1


class Participant(Protocol):
    """A partition that takes part: how its batches are run."""

    def run(self, swept: SweptBatch, replica: Replica, group: int) -> bool:
        """Run a batch through a group; return whether the replica is stuck."""

    def fields(self, swept: SweptBatch) -> Fields:
        """Wait for a batch; return the fields that become columns."""


@dataclass(eq=False)
class SweptBatch:
    """A batch that goes through the groups; called, it waits for its outputs."""

    runner: Participant
    #: Without its numbers.
    batch: Batch
    #: What it hands to the next group.
    carry: Stored
    #: What the model was called with, where `postprocess` wants that.
    inputs: Stored | None
    #: Through all groups, or failed.
    done: bool = False
    #: Why it failed, and the group that raised that.
    error: Exception | None = None
    group: int | None = None
    #: Places between rows that failed and others, where that was found out.
    edges: set[int] = field(default_factory=set)
    #: Groups that it has passed.
    passed: int = 0

    def __call__(self) -> Fields:
        """Return the fields that become columns."""
        return self.runner.fields(self)

    def release(self) -> None:
        """Let go of its values."""
        if self.inputs is not None:
            self.inputs.release()
        self.carry.release()


@dataclass(eq=False)
class Pass:
    """One pass."""

    batches: list[SweptBatch]
    #: The group that runs, or that is to be loaded next.
    group: int = 1
    #: Those that are still to be run through the group; None before it is there.
    todo: deque[SweptBatch] | None = None
    #: Threads that run one.
    running: int = 0
    #: A thread changes the group.
    changing: bool = False
    #: The group's layers; None where they are to be loaded.
    replica: Replica | None = None
    leases: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    began: float = field(default_factory=monotonic)


class Sweep:
    """One model's groups in this process, and the partitions that wait for them.

    `budget` is the most bytes of activations in memory; `directory` has the others.
    """

    def __init__(
        self,
        loader: GroupLoader,
        chain: Chain,
        sizes: Sizes,
        budget: int,
        directory: str | None,
    ) -> None:
        self.loader, self.chain, self.sizes = loader, chain, sizes
        self._limits = budget, directory
        #: Of the partitions that are open; there are none without one.
        self.activations: Activations
        self._open: set[Participant] = set()
        self._waiting = 0
        #: Batches that wait for the next pass.
        self._recorded: list[SweptBatch] = []
        self._pass: Pass | None = None
        #: Seconds of the last pass.
        self._last_seconds = 0.0
        #: Since when any partition is open, and since when all that are open wait.
        self._open_since = 0.0
        self._all_wait_since: float | None = None
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return f"<Sweep {self.groups} groups, {len(self._open)} partitions>"

    @property
    def groups(self) -> int:
        """How many there are."""
        return len(self.loader.parts)

    def enter(self, runner: Participant) -> None:
        """Have passes wait for a partition."""
        with self._changed:
            if not self._open:
                self.activations = Activations(*self._limits)
                self._open_since = monotonic()
            self._open.add(runner)
            self._all_wait_since = None

    def leave(self, runner: Participant) -> None:
        """Forget a partition and its batches."""
        with self._changed:
            self._open.discard(runner)
            self._recorded = [b for b in self._recorded if b.runner is not runner]
            if self._pass is not None:
                for batch in self._pass.batches:
                    if batch.runner is runner:
                        batch.done = True
            last = not self._open
            if last and self._pass is not None:
                self._end_pass(self._pass, None)
            self._changed.notify_all()
        if last:
            self.loader.close()
            self.activations.next_file()

    def read_ahead(self) -> None:
        """Read the second group while partitions run their batches through the first.

        While a pass runs, memory has no room for it.
        """
        if self._pass is None:
            self.loader.read_ahead(1)

    def record(self, batch: SweptBatch) -> None:
        """Have a batch, which has passed the first group, go through the others."""
        with self._changed:
            self._recorded.append(batch)

    def wait(self, is_over: Callable[[], bool]) -> None:
        """Do the work of passes, or wait for other threads that do.

        `is_over` is asked before each piece of work, and may raise to leave.
        """
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            try:
                while not is_over():
                    work = self._next()
                    if work is None:
                        loads = self._pass is not None and self._pass.changing
                        with meter("load" if loads else "wait"):
                            self._changed.wait(POLL_SECONDS)
                        continue
                    self._changed.release()
                    try:
                        work()
                    finally:
                        self._changed.acquire()
            finally:
                self._waiting -= 1
                self._all_wait_since = None

    # --- with the lock -----------------------------------------------------------

    def _next(self) -> Callable[[], None] | None:
        """Return what the calling thread does next, without the lock."""
        current = self._pass
        if current is None:
            if not self._is_time():
                return None
            current = self._pass = Pass(self._recorded)
            self._recorded = []
        if current.changing:
            return None
        while current.todo and current.todo[0].done:  # its partition has left
            current.todo.popleft()
        if current.todo and current.replica is not None:
            batch, replica = current.todo.popleft(), current.replica
            current.running += 1
            return lambda: self._run(current, batch, replica)
        if current.running:
            return None
        current.changing = True
        return lambda: self._change(current)

    def _is_time(self) -> bool:
        """Whether a pass begins: all open partitions wait, and no other will come."""
        if self._waiting < len(self._open):
            self._all_wait_since = None
            return False
        now = monotonic()
        if self._all_wait_since is None:
            self._all_wait_since = now
        # Never for long: they may wait for this one.
        patience = self._all_wait_since - self._open_since
        if self._last_seconds:
            patience = PATIENCE * self._last_seconds
        if now - self._all_wait_since >= patience:
            return True
        worker = current_worker()
        tasks = (
            partitions_at_once() if worker is None else count_tasks_like_this(worker)
        )
        return len(self._open) >= tasks

    def _end_pass(self, current: Pass, error: Exception | None) -> None:
        for batch in current.batches:
            if error is not None and not batch.done:
                batch.error = error
            batch.done = True
        current.leases.close()
        self._pass, self._last_seconds = None, monotonic() - current.began
        model = self.loader.job.model.name
        rows = sum(swept.batch.rows for swept in current.batches)
        logger.info(
            'model "%s": %d rows of %d partitions passed %d layer groups in %.2f s',
            *(model, rows, len(self._open), self.groups - 1, self._last_seconds),
        )
        self._all_wait_since = None
        self._changed.notify_all()

    # --- without the lock --------------------------------------------------------

    def _run(self, current: Pass, batch: SweptBatch, replica: Replica) -> None:
        """Run one batch through the pass's group."""
        again, is_stuck = True, False  # where the thread is interrupted
        try:
            is_stuck = batch.runner.run(batch, replica, current.group)
            again = False
        finally:
            with self._changed:
                current.running -= 1
                if again and current.todo is not None:
                    current.todo.appendleft(batch)
                if batch.runner not in self._open:
                    batch.release()
                if is_stuck and current.replica is replica:
                    cache.discard(replica)
                    current.replica = None
                self._changed.notify_all()

    def _change(self, current: Pass) -> None:
        """Take the pass to its next group, or load its group once more."""
        with self._changed:
            if current.replica is not None:
                current.group, current.todo = current.group + 1, None
            current.replica = None
            alive = [batch for batch in current.batches if not batch.done]
        ends, error = not alive or current.group >= self.groups, None
        try:
            current.leases.close()
            if not ends:
                if current.todo is None:
                    self.activations.next_file()
                lease = self.loader.lease(current.group)
                current.replica = current.leases.enter_context(lease)
                self.loader.read_ahead(current.group + 1)
        except Exception as failure:
            ends, error = True, failure
        finally:
            with self._changed:
                current.changing = False
                if ends:
                    self._end_pass(current, error)
                elif current.replica is not None and current.todo is None:
                    current.todo = deque(alive)
                self._changed.notify_all()
