"""The runner of a sweep: batches run through the layer groups, one after the other."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any, NoReturn

import numpy as np

from dask_infer._dask import count_tasks_like_this, current_task_key
from dask_infer.batch.inputs.batch import Batch
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.device.stream import Fields, Pending, map_tensors
from dask_infer.faults.bisect import HALVES, MANY, Rows
from dask_infer.faults.classify import is_of_no_row, raise_again
from dask_infer.faults.deadline import DeadlineExceeded, within
from dask_infer.metrics.recorder import add, meter, set_level
from dask_infer.pipeline.worker.remote_call import called
from dask_infer.pipeline.worker.serve_stage import is_wanted
from dask_infer.replica.cache import Replica, cache
from dask_infer.replica.worker_place import Place, current_worker, partitions_at_once
from dask_infer.run.postprocess import Postprocess, takes_inputs
from dask_infer.run.process_runner import ProcessRunner
from dask_infer.run.recovery import MOST_TIMEOUTS
from dask_infer.run.runner import Abandoned
from dask_infer.run.sweep.carry_rows import join_rows, take_rows
from dask_infer.run.sweep.failed_rows import FailedRows, pieces_of
from dask_infer.run.sweep.open_sweep import OpenSweep
from dask_infer.run.sweep.passes import Piece, SweptBatch
from dask_infer.spec import Job, UserCode

#: Rows that fail alone before failures are no longer searched for within a pass: then
#: it may be the model that fails, as the partition finds out.
FEW = 32


class _EndingError(Exception):
    """A batch has failed with an error that ends its partition."""


@dataclass(frozen=True)
class SweptOutput:
    """Waits for the outputs of a batch."""

    runner: SweepRunner
    swept: SweptBatch
    batch: Batch
    rows: Rows | None

    def __call__(self) -> Fields:
        """Return the fields that become columns."""
        return self.runner.fields(self.swept, self.batch, self.rows)


class SweepRunner(ProcessRunner):
    """Batches of one partition through the layer groups of this process."""

    resumes = True
    #: Batches are compared by their time in the first group: see `_observe`.
    clock = staticmethod(lambda: 0.0)

    def __init__(
        self,
        job: Job,
        code: UserCode,
        place: Place,
        shared: OpenSweep,
        leases: contextlib.ExitStack,
    ) -> None:
        self.job, self.place = job, place
        self.sweep, self.chain, self.sizes = shared.sweep, shared.chain, shared.sizes
        self._leases = leases
        self._first: Replica | None = None
        first = self._first_group()
        self.device = first.device
        self.stream = self.device.stream()
        model = first.loaded
        self.interface, self.floating = model.interface, model.floating
        self.token_rules = model.token_rules(None)
        self.dtypes, self.inputs = model.dtypes, job.inputs
        self._postprocess = Postprocess(job, code)
        self._takes_inputs = takes_inputs(code.postprocess)
        own_thread = job.timeout is None
        self._seconds = self.device.clock if own_thread else time.perf_counter
        self._worker = worker = current_worker()
        self._is_wanted: Callable[[], bool] | None = None
        if worker is not None:
            self._is_wanted = is_wanted(worker, current_task_key())
        self._batches: set[SweptBatch] = set()
        #: Rows of batches that failed, as the passes left them.
        self._failed = FailedRows()
        #: Forwards that hung, rows that failed alone, rows that were sent.
        self._timeouts = self._failures = self._rows = 0
        #: A batch that failed with an error that ends the partition.
        self._ending: SweptBatch | None = None
        #: Rows times groups that they passed, of batches that are not back yet.
        self._passed = 0
        #: The error that was raised last, and the group that it is from.
        self._raised: tuple[BaseException | None, int | None] = (None, None)

    @property
    def window(self) -> int:
        """All batches of a partition: they wait for the same pass."""
        return sys.maxsize

    # --- the partition's thread --------------------------------------------------

    def send(self, batch: Batch, rows: Rows | None = None) -> Pending:
        """Run a batch through the first group, and have it wait for the others."""
        activations = self.sweep.activations
        carry = activations.put(self.chain.bind(batch.args, batch.kwargs))
        inputs = None
        if self._takes_inputs:
            inputs = activations.put({**dict(enumerate(batch.args)), **batch.kwargs})
        swept = SweptBatch(self, batch.rows, batch.padding.width, carry, inputs)
        swept.in_flight = rows is not None
        self._batches.add(swept)
        self._rows += batch.rows
        began, todo = self._seconds(), list(swept.pieces)
        while todo:
            piece, first = todo.pop(0), self._first_group()
            pieces, is_stuck = self.sweep.run(piece, first, 0)
            if is_stuck:
                cache.discard(first)
                self._leave_first_group()
            if pieces != [piece]:
                todo = pieces + todo
        self._raise_at_once(swept)
        if len(swept.pieces) == 1 and not swept.done:
            self._observe(batch, self._seconds() - began)
        if self.sweep.groups == 1:
            for piece in swept.pieces:
                piece.done = True
        else:
            self.sweep.record(swept)
        return SweptOutput(self, swept, self.kept(batch), rows)

    def _raise_at_once(self, swept: SweptBatch) -> None:
        """Raise an error of the first group that no pass can change."""
        for piece in swept.pieces:
            error = piece.error
            if error is not None and (self._ends(error) or is_out_of_memory(error)):
                swept.release()
                self._batches.discard(swept)
                self._raise(piece)

    def next_back(self, pendings: Iterator[Pending]) -> int:
        """Wait for the first batch, or for one whose error ends the partition."""
        first = next(pendings)
        if not isinstance(first, SweptOutput) or first.swept.done:
            return 0
        self._leave_first_group()
        try:
            self.sweep.wait(first.swept, self._look)
        except _EndingError:
            for place, pending in enumerate(pendings, 1):
                if isinstance(pending, SweptOutput) and pending.swept is self._ending:
                    return place
        return 0

    def kept(self, batch: Batch) -> Batch:
        """Return the batch without its numbers."""
        args, kwargs = map_tensors(lambda t: t.to("meta"), (batch.args, batch.kwargs))
        return replace(batch, args=args, kwargs=kwargs)

    def resume(self, rows: Rows) -> tuple[Batch, Pending] | None:
        """Return rows of a batch that failed as a pass has left them."""
        found = self._failed.find(rows)
        if found is None:
            return None
        batch, swept, places = found
        pieces = pieces_of(swept, places)
        if any(p.error and is_out_of_memory(p.error) for p, _ in pieces):
            return None
        return batch, partial(self._fields_of, pieces, batch, swept, places)

    def origin(self, error: BaseException) -> tuple[str | None, int | None]:
        """Return this worker, and the group that raised the error."""
        raised, group = self._raised
        return self.place.worker, group if error is raised else None

    def release(self) -> None:
        """Let go of all values."""
        for swept in self._batches:
            swept.release()

    def expected(self) -> int:
        """Return how many partitions will wait for the next pass."""
        if self._worker is None:
            return partitions_at_once()
        return count_tasks_like_this(self._worker)

    # --- any thread of the sweep -------------------------------------------------

    def forward(
        self, values: dict[Any, Any], replica: Replica, group: int, rows: int
    ) -> dict[Any, Any]:
        """Return what a group makes of values, within the timeout."""
        stream, timeout = self.stream, self.job.timeout
        what = f"forward of {self.job.model.name}, layer group {group}"

        def launch() -> Pending:
            replica.device.enter_forward(self.place.cpu_threads)
            _, moved = stream.upload((), values)
            handed = replica.loaded.call((moved,), {})
            return stream.download(list(handed.items()))

        with meter("wait"), replica.device.exclusive(), meter("forward"):
            pending = within(timeout, launch, what=what)
        with meter("forward"):
            left = timeout if stream.overlaps else None
            handed = dict(within(left, pending, what=what))
        add("forwards")
        replica.count(rows)
        self._passed += rows
        return handed

    def parts_before(self, piece: Piece) -> int:
        """Return in how many pieces rows are run that would not fit; 0 for all.

        Batches that wait are as large as one that did not fit.
        """
        width = piece.batch.width
        policy = self.policy(width)
        rows, amount = len(piece.positions), len(piece.positions) * (width or 1)
        if policy is None or rows < 2 or not self.job.row_wise:
            return 0
        if not self.sizes.ran_out_of_memory or amount <= policy.size:
            return 0
        return ceil(amount / policy.size)

    def parts_after(self, piece: Piece, error: Exception) -> int:
        """Return in how many pieces rows that failed are run again; 0 for none."""
        rows, hung = len(piece.positions), isinstance(error, DeadlineExceeded)
        self._timeouts += hung
        can_cut = rows > 1 and self.job.row_wise
        if is_out_of_memory(error):
            self.release_memory()
            if can_cut:
                add("halvings")
                self.shrink(rows, piece.batch.width)
            return HALVES * can_cut
        if self._ends(error):
            if piece.batch.in_flight:
                self._ending = piece.batch
            return 0
        self._failures += rows == 1
        most = max(FEW, self.job.max_errors * self._rows)
        if not can_cut or self._failures > most or self._timeouts > MOST_TIMEOUTS:
            return 0
        return MANY if hung else HALVES

    # -----------------------------------------------------------------------------

    def _first_group(self) -> Replica:
        """Return the first group, leased until this partition waits."""
        if self._first is None:
            lease = self.sweep.loader.lease(0, passing=True)
            self._first = self._leases.enter_context(lease)
            self.sweep.read_ahead()
        return self._first

    def _leave_first_group(self) -> None:
        self._first = None
        self._leases.close()

    def _observe(self, batch: Batch, seconds: float) -> None:
        """Let the size policy learn from the first group.

        What a batch takes in all would only be known when all sizes are chosen.
        """
        width = batch.padding.width
        if width and self._budget is not None:
            self._budget.observe(batch.rows * width, seconds)
        elif self._size is not None:
            self._size.observe(batch.rows, seconds)

    def _ends(self, error: Exception) -> bool:
        """Whether an error ends the partition."""
        if is_out_of_memory(error):
            return False
        return not self.job.nullable or is_of_no_row(error)

    def _look(self) -> None:
        """Leave a pass where the task is not wanted any more, or has failed."""
        self._show()
        if self._ending is not None:
            raise _EndingError
        if self._is_wanted is not None and not self._is_wanted():
            raise Abandoned

    def _show(self) -> None:
        """Have progress go on during a pass."""
        set_level("rows_underway", max(0, self._passed) / (self.sweep.groups + 1))

    def fields(self, swept: SweptBatch, batch: Batch, rows: Rows | None) -> Fields:
        """Wait for a batch; return the fields that become columns."""
        if not swept.done and swept is not self._ending:
            self._leave_first_group()
            self.sweep.wait(swept, self._look)
        places = np.arange(batch.rows)
        failed = any(piece.error is not None for piece in swept.pieces)
        if failed and rows is not None and len(swept.pieces) > 1:
            self._failed.add(rows, batch, swept)
        try:
            return self._fields_of(pieces_of(swept, places), batch, swept, places)
        finally:
            self._passed -= batch.rows * self.sweep.groups
            self._show()
            if not failed:
                swept.release()
                self._batches.discard(swept)

    def _raise(self, piece: Piece) -> NoReturn:
        assert piece.error is not None
        self._raised = (piece.error, piece.group)
        raise_again(piece.error)

    def _fields_of(
        self,
        pieces: Sequence[tuple[Piece, np.ndarray]],
        batch: Batch,
        swept: SweptBatch,
        places: np.ndarray,
    ) -> Fields:
        """Return the fields of some rows of a batch, or raise what the first raised."""
        for piece, _ in pieces:
            if piece.error is not None:
                self._raise(piece)
        axes = self.sweep.axes[-1]
        parts = [piece.carry.load() for piece, _ in pieces]
        values = parts[0]
        if len(swept.pieces) > 1:
            assert axes is not None
            cut = zip(parts, pieces, strict=True)
            values = join_rows([take_rows(v, axes, rows) for v, (_, rows) in cut], axes)
        inputs = {} if swept.inputs is None else swept.inputs.load()
        if len(places) < swept.rows:
            inputs = take_rows(inputs, dict.fromkeys(inputs, 0), places)
        args, kwargs = called(inputs)
        return self._postprocess(self.chain.output(values), batch, args, kwargs)
