"""The runner of a sweep: batches run through the layer groups, one after the other."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from distributed import Reschedule

from dask_infer._dask import current_task_key
from dask_infer.batch.inputs.batch import Batch
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.device.stream import Fields, Pending, map_tensors
from dask_infer.faults.bisect import HALVES, Rows, spans
from dask_infer.faults.classify import forget_frames, is_of_no_row, raise_again
from dask_infer.faults.deadline import DeadlineExceeded, within
from dask_infer.metrics.recorder import add, meter, set_level
from dask_infer.pipeline.worker.remote_call import called
from dask_infer.pipeline.worker.serve_stage import is_wanted
from dask_infer.replica.cache import Replica, cache
from dask_infer.replica.worker_place import Place, current_worker
from dask_infer.run.postprocess import Postprocess, takes_inputs
from dask_infer.run.process_runner import ProcessRunner
from dask_infer.run.runner import Abandoned
from dask_infer.run.sweep.carry_rows import row_axes, take_rows
from dask_infer.run.sweep.open_sweep import open_sweep
from dask_infer.run.sweep.passes import Sweep, SweptBatch
from dask_infer.spec import Job, UserCode

#: Rows that fail alone before failures are no longer searched for within a pass: then
#: it may be the model that fails, as the partition finds out.
FEW = 32


@contextlib.contextmanager
def sweep_runner(job: Job, code: UserCode, place: Place) -> Iterator[SweepRunner]:
    """Take part in the sweep of a job's model with the batches of one partition."""
    sweep = open_sweep(job, place)
    with contextlib.ExitStack() as leases:
        runner = SweepRunner(job, code, place, sweep, leases)
        sweep.enter(runner)
        try:
            yield runner
        except Abandoned:
            # As of a `RemoteRunner`: the task may be wanted again.
            raise Reschedule from None
        finally:
            leases.close()
            sweep.leave(runner)
            runner.release()


class SweepRunner(ProcessRunner):
    """Batches of one partition through the layer groups of this process."""

    waits = True
    #: Batches are compared by their time in the first group: see `send`.
    clock = staticmethod(lambda: 0.0)

    def __init__(
        self,
        job: Job,
        code: UserCode,
        place: Place,
        sweep: Sweep,
        leases: contextlib.ExitStack,
    ) -> None:
        self.job, self.place = job, place
        self.sweep, self.sizes = sweep, sweep.sizes
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
        worker = current_worker()
        self._is_wanted: Callable[[], bool] = lambda: True
        if worker is not None:
            self._is_wanted = is_wanted(worker, current_task_key())
        #: Batches that are not back yet.
        self._batches: set[SweptBatch] = set()
        #: Rows that failed alone within passes, and rows that were sent.
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
        carry = activations.put(self.sweep.chain.bind(batch.args, batch.kwargs))
        inputs = None
        if self._takes_inputs:
            inputs = activations.put({**dict(enumerate(batch.args)), **batch.kwargs})
        swept = SweptBatch(self, self.kept(batch), carry, inputs)
        self._batches.add(swept)
        self._rows += batch.rows
        began, first = self._seconds(), self._first_group()
        if self.run(swept, first, 0):
            cache.discard(first)
            self._leave_first_group()
        if swept.error is not None:
            self._raise(swept)
        # The size policy learns from the first group: what a batch takes in all would
        # only be known when all sizes are chosen.
        policy, size = self.policy(batch.rows, batch.padding.width)
        policy.observe(size, self._seconds() - began)
        if self.sweep.groups == 1:
            swept.done = True
        else:
            self.sweep.record(swept)
        return swept

    def next_back(self, pendings: Iterator[Pending]) -> int:
        """Wait for the first batch, or for one whose error ends the partition."""
        first = next(pendings)
        assert isinstance(first, SweptBatch)
        self._wait(lambda: first.done or self._ending is not None)
        if not first.done:
            for place, pending in enumerate(pendings, 1):
                if pending is self._ending:
                    return place
        return 0

    def fields(self, swept: SweptBatch) -> Fields:
        """Wait for a batch; return the fields that become columns."""
        self._wait(lambda: swept.done)
        if swept.error is not None:
            self._raise(swept)
        try:
            values = swept.carry.load()
            args, kwargs = called({} if swept.inputs is None else swept.inputs.load())
            output = self.sweep.chain.output(values)
            return self._postprocess(output, swept.batch, args, kwargs)
        finally:
            self._forget(swept)

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

    def _first_group(self) -> Replica:
        """Return the first group, leased until this partition waits."""
        if self._first is None:
            lease = self.sweep.loader.lease(0)
            self._first = self._leases.enter_context(lease)
            self.sweep.read_ahead()
        return self._first

    def _leave_first_group(self) -> None:
        self._first = None
        self._leases.close()

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Take part in passes; leave one where the task is not wanted any more."""
        if is_over():
            return
        self._leave_first_group()

        def is_left() -> bool:
            self._show()
            if is_over():
                return True
            if not self._is_wanted():
                raise Abandoned
            return False

        self.sweep.wait(is_left)

    def _show(self) -> None:
        """Have progress go on during a pass."""
        passed = sum(swept.passed * swept.batch.rows for swept in self._batches)
        set_level("rows_underway", passed / (self.sweep.groups + 1))

    def _raise(self, swept: SweptBatch) -> NoReturn:
        assert swept.error is not None
        self._forget(swept)
        self._raised, self._ending = swept, None
        raise_again(swept.error)

    def _forget(self, swept: SweptBatch) -> None:
        swept.release()
        self._batches.discard(swept)
        self._show()

    # --- any thread of the sweep -------------------------------------------------

    def run(self, swept: SweptBatch, replica: Replica, group: int) -> bool:
        """Run a batch through a group; return whether the replica is stuck.

        Within a pass the rows that fail are searched for, or how many of them fit.
        """
        values, everything = swept.carry.load(), range(swept.batch.rows)

        def go_on() -> None:
            handed = self._forward(swept, everything, values, replica, group)
            carry = self.sweep.activations.put(handed)
            swept.carry.release()
            swept.carry = carry

        error = _error_of(go_on)
        if error is None:
            swept.passed += 1
            return False
        swept.error, swept.group = error, group
        is_stuck, ends = isinstance(error, DeadlineExceeded), False
        axes = None
        if group and self.job.row_wise:
            axes = row_axes(self.sweep.chain, self.sweep.loader.parts[group].start)

        def run(rows: range) -> None:
            assert axes is not None
            some = take_rows(values, axes, slice(rows.start, rows.stop))
            self._forward(swept, rows, some, replica, group)

        if is_out_of_memory(error):
            if not self._is_too_large(swept, everything):
                self._find_size(swept, None if axes is None else run)
        else:
            ends = not self.job.nullable or is_of_no_row(error)
            if axes is not None and not (ends or is_stuck):
                is_stuck = self._find_rows(swept, run)
        swept.carry.release()
        swept.done = True
        if ends:
            self._ending = swept
        return is_stuck

    def _forward(
        self,
        swept: SweptBatch,
        rows: range,
        values: dict[Any, Any],
        replica: Replica,
        group: int,
    ) -> dict[Any, Any]:
        """Return what a group makes of the values of some rows, within the timeout."""
        if self._is_too_large(swept, rows):
            raise MemoryError
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
        replica.count(len(rows))
        return handed

    def _find_rows(self, swept: SweptBatch, run: Callable[[range], None]) -> bool:
        """Find the rows that fail alone; return whether the replica is stuck.

        What is found is a guess: a layer may have put rows in another order, which a
        later one undoes. So the rows are run again from their inputs.
        """
        most = max(FEW, self.job.max_errors * self._rows)
        todo = [range(swept.batch.rows)]
        while todo and self._failures < most and not swept.done:  # its partition left
            rows = todo.pop()
            if len(rows) == 1:
                self._failures += 1
                swept.edges |= {rows.start, rows.stop}
                continue
            for span in reversed(spans(len(rows), HALVES)):
                error = _error_of(partial(run, rows[span]))
                if isinstance(error, DeadlineExceeded):
                    return True
                if error is not None:
                    todo.append(rows[span])
        return False

    def _find_size(
        self, swept: SweptBatch, run: Callable[[range], None] | None
    ) -> None:
        """Halve a batch for which memory ran out until its first rows fit."""
        rows = swept.batch.rows
        while rows > 1 and self.job.row_wise:
            self.release_memory()
            self.shrink(rows, swept.batch.padding.width)
            rows //= 2
            error = run and _error_of(partial(run, range(rows)))
            if error is None or not is_out_of_memory(error):
                return
            add("halvings")  # that of all rows is counted as they are run again

    def _is_too_large(self, swept: SweptBatch, rows: range) -> bool:
        """Whether as many rows did not fit already: batches that wait are as large."""
        if len(rows) == 1 or not self.job.row_wise:
            return False
        policy, size = self.policy(len(rows), swept.batch.padding.width)
        is_known = policy.settled and self.sizes.ran_out_of_memory
        return is_known and size > policy.size


def _error_of(work: Callable[[], None]) -> Exception | None:
    """Do it; return what it raised, without the memory that its frames held."""
    try:
        work()
        return None
    except Exception as failure:
        error = failure
    # Not in the handler, whose traceback holds that memory. Nor may the error hold this
    # frame as long as it is kept.
    forget_frames(error)
    trace = error.__traceback__
    error.__traceback__ = None if trace is None else trace.tb_next
    return error
