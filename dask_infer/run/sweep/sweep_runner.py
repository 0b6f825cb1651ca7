"""The runner of a sweep: batches run through the layer groups, one after the other."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from dask_infer._dask import count_tasks_like_this, current_task_key
from dask_infer.batch.inputs.batch import Batch
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.device.stream import Fields, Pending, map_tensors
from dask_infer.errors import PartitionError
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

    def __call__(self) -> Fields:
        """Return the fields that become columns."""
        return self.runner.fields(self.swept, self.batch)


class SweepRunner(ProcessRunner):
    """Batches of one partition through the layer groups of this process."""

    waits = True
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
        self.observed_kind = first.device.torch_device.type
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
        #: Batches that are not back yet: their rows times the groups that they passed.
        self._batches: dict[SweptBatch, int] = {}
        #: Forwards that hung, by group, and the groups of which any ended.
        self._timeouts: Counter[int] = Counter()
        self._ended: set[int] = set()
        #: Rows that failed alone, and rows that were sent.
        self._failures = self._rows = 0
        #: A batch that failed with an error that ends the partition.
        self._ending: SweptBatch | None = None
        #: The batch whose error was raised last.
        self._raised: SweptBatch | None = None

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
        self._batches[swept] = 0
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
        if swept.error is not None:
            self._forget(swept)
            self._raise(swept)
        self._observe(batch, self._seconds() - began)
        if self.sweep.groups == 1:
            swept.pieces[0].done = True
        else:
            self.sweep.record(swept)
        return SweptOutput(self, swept, self.kept(batch))

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

    def cuts(self, error: BaseException) -> Collection[int]:
        """Return places between rows that failed in their pass and others."""
        raised = self._raised
        return raised.edges if raised and raised.error is error else ()

    def origin(self, error: BaseException) -> tuple[str | None, int | None]:
        """Return this worker, and the group that raised the error."""
        raised = self._raised
        group = raised.group if raised and raised.error is error else None
        return self.place.worker, group

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
        self, piece: Piece, values: dict[Any, Any], replica: Replica, group: int
    ) -> dict[Any, Any]:
        """Return what a group makes of a piece's values, within the timeout."""
        if self._is_too_large(piece):
            raise MemoryError
        self._check_timeouts(group)
        stream, timeout, rows = self.stream, self.job.timeout, len(piece.rows)
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
        self._ended.add(group)
        self._batches[piece.batch] += rows
        return handed

    def parts_after(self, piece: Piece, error: Exception, group: int) -> int:
        """Take note of a failure; return in how many pieces to go on, 0 for none."""
        batch = piece.batch
        is_whole = batch.error is None  # else it may have been cut at wrong places
        if is_whole:
            batch.error, batch.group = error, group
        hung = isinstance(error, DeadlineExceeded)
        self._timeouts[group] += hung
        rows = len(piece.rows)
        can_cut = rows > 1 and self.job.row_wise
        if is_out_of_memory(error):
            if not self._is_too_large(piece):
                self.release_memory()
                if can_cut:
                    if not is_whole:  # else it is counted as it is run again
                        add("halvings")
                    self.shrink(rows, batch.width)
            return HALVES * can_cut
        if self._ends(error):
            if is_whole and batch.in_flight:
                self._ending = batch
            return 0
        self._failures += rows == 1
        most = max(FEW, self.job.max_errors * self._rows)
        too_many = self._failures > most or self._timeouts[group] > MOST_TIMEOUTS
        if too_many or not can_cut:
            return 0
        return MANY if hung else HALVES

    def _check_timeouts(self, group: int) -> None:
        """Refuse forwards of a group that only hangs: the partition would end so."""
        hung, name = self._timeouts[group], self.job.model.name
        none_ended = group not in self._ended and self.job.max_errors < 1
        if hung > MOST_TIMEOUTS and none_ended:
            raise PartitionError(
                f'model "{name}" on {self.where}: {hung} forwards of layer group '
                f"{group} hung and none ended, which is not the fault of single rows: "
                "see to the model, or raise timeout="
            )

    def _is_too_large(self, piece: Piece) -> bool:
        """Whether as many rows did not fit already: batches that wait are as large."""
        rows, width = len(piece.rows), piece.batch.width
        policy = self.policy(width)
        if policy is None or rows == 1 or not self.job.row_wise:
            return False
        is_known = policy.settled and self.sizes.ran_out_of_memory
        return is_known and rows * (width or 1) > policy.size

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
        passed = sum(self._batches.values())
        set_level("rows_underway", passed / (self.sweep.groups + 1))

    def fields(self, swept: SweptBatch, batch: Batch) -> Fields:
        """Wait for a batch; return the fields that become columns."""
        if not swept.done and swept is not self._ending:
            self._leave_first_group()
            self.sweep.wait(swept, self._look)
        if swept.error is not None:
            if swept.done:  # else a pass has it
                self._forget(swept)
            self._raise(swept)
        try:
            (piece,) = swept.pieces
            values = piece.carry.load()
            args, kwargs = called({} if swept.inputs is None else swept.inputs.load())
            return self._postprocess(self.chain.output(values), batch, args, kwargs)
        finally:
            self._forget(swept)

    def _raise(self, swept: SweptBatch) -> NoReturn:
        assert swept.error is not None
        self._raised = swept
        raise_again(swept.error)

    def _forget(self, swept: SweptBatch) -> None:
        swept.release()
        self._batches.pop(swept, None)
        self._show()
