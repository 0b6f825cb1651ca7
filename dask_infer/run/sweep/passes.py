"""The passes of one model's layer groups over all batches that wait in this process.

A partition runs its batches through the first group as it encodes them, and waits. Once
all partitions of the process wait, a pass takes all of their batches through the other
groups. The threads that wait do its work: each takes the next batch, whosever it is.
Invariants, guarded by one lock:

1. At most one pass runs. Its group changes once no batch is left to be run
   through it, and none is running.
2. One thread changes the group, without the lock; the others wait.
3. No thread holds a group while waiting for other partitions or for memory.

A batch that fails in a group is cut, and its pieces go on, to find out which of them
fail. No outputs are made of the pieces: see `carry_rows`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from dask_infer.faults.bisect import spans
from dask_infer.faults.classify import forget_frames
from dask_infer.faults.deadline import DeadlineExceeded
from dask_infer.metrics.recorder import meter
from dask_infer.replica.cache import Replica, cache
from dask_infer.run.sweep.activations import Activations, Stored
from dask_infer.run.sweep.carry_rows import Axes, take_rows
from dask_infer.run.sweep.group_loader import GroupLoader

logger = logging.getLogger(__name__)

#: Seconds between two looks of a thread that waits.
POLL_SECONDS = 0.1
#: Part of the last pass that a pass waits for partitions that may come: those of other
#: threads begin their reading together, and end it one after the other.
PATIENCE = 0.1


class Participant(Protocol):
    """A partition that takes part: how its batches are run."""

    def forward(
        self, piece: Piece, values: dict[Any, Any], replica: Replica, group: int
    ) -> dict[Any, Any]:
        """Return what a group makes of values, within the partition's timeout."""

    def parts_after(self, piece: Piece, error: Exception, group: int) -> int:
        """Take note of a failure; return in how many pieces to go on, 0 for none."""

    def expected(self) -> int:
        """Return how many partitions will wait for the next pass."""


@dataclass(eq=False)
class Piece:
    """Rows of a batch in the sweep: all of them, unless it failed."""

    batch: SweptBatch
    #: Places in the batch.
    rows: range
    carry: Stored
    #: Through all groups, or failed.
    done: bool = False
    failed: bool = False

    def fail(self) -> None:
        """Take note that it goes no further."""
        self.done = self.failed = True


class SweptBatch:
    """A batch that goes through the groups."""

    #: Why it failed, and the group that raised that.
    error: Exception | None = None
    group: int | None = None

    def __init__(
        self,
        runner: Participant,
        rows: int,
        width: int,
        carry: Stored,
        inputs: Stored | None,
    ) -> None:
        #: `width` is that of padded rows; 0 where they are not.
        self.runner, self.rows, self.width = runner, rows, width
        #: What the model was called with, where `postprocess` wants that.
        self.inputs = inputs
        #: Its outputs are collected: it is no trial of single rows.
        self.in_flight = False
        #: In the order of their rows.
        self.pieces = [Piece(self, range(rows), carry)]

    @property
    def done(self) -> bool:
        """Whether all of its rows came through, or failed."""
        return all(piece.done for piece in self.pieces)

    @property
    def edges(self) -> list[int]:
        """Places between rows that failed and others, where that was found out."""
        failed = [piece.rows for piece in self.pieces if piece.failed]
        edges = {edge for rows in failed for edge in (rows.start, rows.stop)}
        return sorted(edges - {0, self.rows})

    def release(self) -> None:
        """Let go of its values."""
        if self.inputs is not None:
            self.inputs.release()
        for piece in self.pieces:
            piece.carry.release()


@dataclass(eq=False)
class Pass:
    """One pass."""

    pieces: list[Piece]
    #: The group that runs, or that is to be loaded next.
    group: int = 1
    #: Pieces that are still to be run through the group; None before it is there.
    todo: deque[Piece] | None = None
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

    Parameters
    ----------
    loader
        The groups.
    axes
        Of what enters each group.
    """

    def __init__(self, loader: GroupLoader, axes: list[Axes | None]) -> None:
        self.loader, self.axes = loader, axes
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

    def enter(self, runner: Participant, activations: Activations) -> None:
        """Have passes wait for a partition; `activations` where it is the only one."""
        with self._changed:
            if not self._open:
                self.activations, self._open_since = activations, monotonic()
            self._open.add(runner)
            self._all_wait_since = None

    def leave(self, runner: Participant) -> None:
        """Forget a partition and its batches."""
        with self._changed:
            self._open.discard(runner)
            self._recorded = [b for b in self._recorded if b.runner is not runner]
            if self._pass is not None:
                for piece in self._pass.pieces:
                    if piece.batch.runner is runner:
                        piece.done = True
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

    def wait(self, batch: SweptBatch, look: Callable[[], None]) -> None:
        """Wait for a batch; do the work of a pass meanwhile.

        Parameters
        ----------
        look
            Called now and then; may raise to leave.
        """
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            try:
                while not batch.done:
                    look()  # not once there is work, which must be done
                    work = self._next(batch.runner)
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

    def _next(self, runner: Participant) -> Callable[[], None] | None:
        """Return what the calling thread does next, without the lock."""
        current = self._pass
        if current is None:
            if not self._is_time(runner):
                return None
            pieces = [p for b in self._recorded for p in b.pieces if not p.done]
            current, self._recorded = Pass(pieces), []
            self._pass = current
        if current.changing:
            return None
        while current.todo and current.todo[0].done:  # its partition has left
            current.todo.popleft()
        if current.todo and current.replica is not None:
            piece, replica = current.todo.popleft(), current.replica
            current.running += 1
            return lambda: self._run(current, piece, replica)
        if current.running:
            return None
        current.changing = True
        return lambda: self._change(current)

    def _is_time(self, runner: Participant) -> bool:
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
        waited = now - self._all_wait_since
        return waited >= patience or len(self._open) >= runner.expected()

    def _end_pass(self, current: Pass, error: Exception | None) -> None:
        for piece in current.pieces:
            if error is not None and not piece.done:
                piece.batch.error, piece.batch.group = error, None
            piece.done = True
        current.leases.close()
        self._pass, self._last_seconds = None, monotonic() - current.began
        model = self.loader.job.model.name
        rows = sum(len(piece.rows) for piece in current.pieces)
        logger.info(
            'model "%s": %d rows of %d partitions passed %d layer groups in %.2f s',
            *(model, rows, len(self._open), self.groups - 1, self._last_seconds),
        )
        self._all_wait_since = None
        self._changed.notify_all()

    # --- without the lock --------------------------------------------------------

    def _run(self, current: Pass, piece: Piece, replica: Replica) -> None:
        """Run one piece through the pass's group."""
        again, is_stuck = [piece], False  # where the thread is interrupted
        try:
            pieces, is_stuck = self.run(piece, replica, current.group)
            again = pieces if pieces != [piece] else []
        finally:
            with self._changed:
                current.running -= 1
                if again and again != [piece]:
                    current.pieces.remove(piece)
                    current.pieces += again
                if current.todo is not None:
                    current.todo.extendleft(reversed(again))
                if piece.batch.runner not in self._open:
                    for left in (piece, *again):
                        left.carry.release()
                if is_stuck and current.replica is replica:
                    cache.discard(replica)
                    current.replica = None
                self._changed.notify_all()

    def run(
        self, piece: Piece, replica: Replica, group: int
    ) -> tuple[list[Piece], bool]:
        """Run a piece through a group.

        Returns
        -------
        The piece, or those that are to be run instead where it failed, and whether the
        replica is stuck.
        """
        runner, axes = piece.batch.runner, self.axes[group]
        values = piece.carry.load()
        try:
            handed = runner.forward(piece, values, replica, group)
            carry = self.activations.put(handed)
            piece.carry.release()
            piece.carry = carry
            return [piece], False
        except Exception as failure:
            error = failure
        # Not in the handler, whose traceback holds the memory of the forward. Nor may
        # the error hold this frame as long as it is kept.
        forget_frames(error)
        trace = error.__traceback__
        error.__traceback__ = None if trace is None else trace.tb_next
        is_stuck = isinstance(error, DeadlineExceeded)
        parts = runner.parts_after(piece, error, group)
        pieces = [piece]
        if axes is not None and parts:
            pieces = self._cut(piece, values, axes, parts)
        if pieces == [piece]:
            piece.fail()
        piece.carry.release()
        return pieces, is_stuck

    def _cut(
        self, piece: Piece, values: dict[Any, Any], axes: Axes, parts: int
    ) -> list[Piece]:
        """Return the rows of a piece in several; its batch has them in its place."""
        batch, pieces = piece.batch, []
        try:
            for span in spans(len(piece.rows), parts):
                carry = self.activations.put(take_rows(values, axes, span))
                pieces.append(Piece(batch, piece.rows[span], carry))
        except Exception:  # no room for the rows: not searched
            for each in pieces:
                each.carry.release()
            return [piece]
        with self._changed:
            at = batch.pieces.index(piece)
            batch.pieces[at : at + 1] = pieces
        return pieces

    def _change(self, current: Pass) -> None:
        """Take the pass to its next group, or load its group once more."""
        with self._changed:
            if current.replica is not None:
                current.group, current.todo = current.group + 1, None
            current.replica = None
            alive = [piece for piece in current.pieces if not piece.done]
        ends, error = not alive or current.group >= self.groups, None
        try:
            current.leases.close()
            if not ends:
                if current.todo is None:
                    self.activations.next_file()
                lease = self.loader.lease(current.group, passing=True)
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
