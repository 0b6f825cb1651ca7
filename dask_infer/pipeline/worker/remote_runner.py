"""The runner of a group: batches become microbatches that other workers run."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from math import ceil
from typing import Any, TypeVar

import torch
from distributed import Reschedule, Worker

from dask_infer._dask import as_part_of_task, current_task_key
from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.sizing.hill_climber import HillClimber
from dask_infer.device.stream import Fields, Pending
from dask_infer.faults.bisect import Rows
from dask_infer.metrics.recorder import meter
from dask_infer.pipeline.messages.group_state import GroupState
from dask_infer.pipeline.messages.microbatch import Failure, Payload, RemoteTraceback
from dask_infer.pipeline.worker.group_client import GroupClient, group_client
from dask_infer.pipeline.worker.group_request import (
    leave_thread,
    may_leave_thread,
    worker_for,
)
from dask_infer.pipeline.worker.measure import planned_kind
from dask_infer.pipeline.worker.microbatch_comms import MicrobatchComms, comms_of
from dask_infer.pipeline.worker.remote_call import RemoteCall
from dask_infer.pipeline.worker.serve_stage import is_wanted
from dask_infer.plan.window import feeder_share
from dask_infer.replica.measured import sharded
from dask_infer.replica.worker_place import current_worker
from dask_infer.run.runner import Abandoned, Runner
from dask_infer.spec import Job, UserCode

T = TypeVar("T")

#: Bytes that a forward may take in a stage, as far as a feeder knows: what does not
#: fit comes back and is halved.
STAGE_BYTES = 1 << 30
#: Most rows of a batch over those that were planned: 48 rows where 35 were planned are
#: one batch, two of 24 took a twelfth more CPU (benchmarks/pipeline).
MAX_OVERSIZE = 1.5
#: Seconds between two looks of a feeder that waits.
POLL_SECONDS = 0.2


#: Set where other feeders of the same task failed: this one is not wanted any more.
failed_beside: ContextVar[tuple[threading.Event, ...]] = ContextVar(
    "dask_infer_failed_beside", default=()
)


class Waiting:
    """The waits of one feeder's thread, which it leaves where a stage needs one."""

    def __init__(self, worker: Worker, comms: MicrobatchComms, key: Any) -> None:
        self._comms = comms
        self._wanted = is_wanted(worker, key)
        self._failed_beside = failed_beside.get()
        self._looked = time.monotonic()

    def __call__(self, future: concurrent.futures.Future[T]) -> T:
        """Return the result of `future`.

        Raises
        ------
        Abandoned
            If this task is not wanted any more.
        """
        # Also where each answer comes at once.
        if time.monotonic() - self._looked > POLL_SECONDS:
            self._look(future)
        while not concurrent.futures.wait([future], POLL_SECONDS).done:
            self._look(future)
        return future.result()

    def _look(self, future: concurrent.futures.Future[T]) -> None:
        self._looked = time.monotonic()
        failed = any(event.is_set() for event in self._failed_beside)
        if failed or not self._wanted():
            future.cancel()
            raise Abandoned
        if may_leave_thread() and self._comms.stage_needs_thread():
            leave_thread()


@contextlib.contextmanager
def remote_runner(job: Job, code: UserCode) -> Iterator[RemoteRunner]:
    """Open the group of a job for the batches of one partition."""
    assert job.group is not None
    worker = worker_for(job.group)
    client = group_client(worker, job.group)
    key = current_task_key()
    wait = Waiting(worker, client.comms, key)
    loop = client.comms.loop
    try:
        state = wait(asyncio.run_coroutine_threadsafe(client.open(key), loop))
        runner = RemoteRunner(job, code, client, state, wait)
        try:
            yield runner
        finally:
            runner.abandon()
            asyncio.run_coroutine_threadsafe(client.close(key), loop)
    except Abandoned:
        # Dask may have changed its mind meanwhile: a task that was cancelled and is
        # wanted again gets this result, so it must be none.
        raise Reschedule from None


class RemoteRunner(Runner):
    """Batches of one partition through a group of other workers."""

    def __init__(
        self,
        job: Job,
        code: UserCode,
        client: GroupClient,
        state: GroupState,
        wait: Waiting,
    ) -> None:
        self.job, self.client, self.wait = job, client, wait
        self.call = RemoteCall(job, code)
        self._loop: asyncio.AbstractEventLoop = client.comms.loop
        self._sent: set[concurrent.futures.Future[Payload]] = set()
        self.sizes = client.sizes
        # As it was when it served; `client.state` may be that of another moment.
        facts = state.facts
        self.interface, self.dtypes = facts.interface, facts.dtypes
        floating = facts.floating
        self.floating = None if floating is None else getattr(torch, floating)
        self.token_rules = facts.tokens
        self.inputs = job.inputs
        self.microbatch = state.microbatch
        assert job.group is not None
        planned = planned_kind(job.group, "GPU" in dict(job.group.resources))
        kind = planned if facts.kind == "cpu" else facts.kind
        shards = [len(stage) for each in state.instances for stage in each.stages]
        self.observed_kind = sharded(kind, max(shards, default=1))

    @property
    def window(self) -> int:
        """The feeder's share of what all instances admit."""
        ready = len(self.client.state.serving)
        return feeder_share(self.client.window, ready, self.client.feeders)

    @property
    def where(self) -> str:
        """The workers of the stages."""
        instances = self.client.state.instances
        routes = (" -> ".join(each.route) for each in instances)
        return f"the stages of {' and '.join(routes) or self.client.spec.key}"

    def batch_size(
        self, signature: object, bytes_per_row: float, bound: int | None
    ) -> HillClimber:
        """Return the policy of this worker's feeders for the group."""
        rows, best = bound, self.microbatch
        if best is not None:
            rows = ceil(MAX_OVERSIZE * best) if bound is None else min(bound, best)
        return super().batch_size(signature, bytes_per_row, rows)

    def free_bytes(self) -> int:
        """Bytes that a forward may take in a stage."""
        return STAGE_BYTES

    def send(self, batch: Batch, rows: Rows | None = None) -> Pending:
        """Send a microbatch; returns at once, also where it waits for admission."""
        payload = Payload(values=self.call.bind(batch))
        work = self.client.send(payload, batch.rows, self.job.method, self.call.outputs)
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._sent.add(future)
        return partial(self._fields, future, batch)

    def abandon(self) -> None:
        """Cancel the microbatches in flight."""
        for future in self._sent:
            future.cancel()
        self._sent.clear()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether memory ran out in a stage."""
        failure = _failure(error)
        return failure is not None and failure.out_of_memory

    def origin(self, error: BaseException) -> tuple[str | None, int | None]:
        """Return the worker and the stage that raised an error."""
        failure = _failure(error)
        return (None, None) if failure is None else (failure.worker, failure.stage)

    def _fields(
        self, future: concurrent.futures.Future[Payload], batch: Batch
    ) -> Fields:
        """Wait for a microbatch; return the fields that become columns."""
        try:
            with meter("wait"):
                payload = self.wait(future)
        finally:
            self._sent.discard(future)
        self.elsewhere = self.elsewhere.plus(payload.times)
        return self.call.fields(payload.open(), batch)


def _failure(error: BaseException) -> Failure | None:
    """Return what a stage reported of an error that it raised."""
    link: BaseException | None = error
    while link is not None and not isinstance(link, RemoteTraceback):
        link = link.__cause__
    return None if link is None else link.failure


# --- several feeders of one task ------------------------------------------------------


def feed_together(
    feeders: Sequence[Callable[[], T]], meanwhile: Callable[[], None]
) -> list[T]:
    """Return what each feeder returns; `meanwhile` runs in the calling thread.

    Each feeder has a thread of its own. The calling thread is the task's: it alone may
    be left where a stage needs one. Where one raises, the others give up, and that
    error is raised.
    """
    worker = current_worker()
    if worker is None:  # they refuse to run
        return [feed() for feed in feeders]
    failed = threading.Event()
    token = failed_beside.set((*failed_beside.get(), failed))

    def run(feed: Callable[[], T]) -> T:
        try:
            return feed()
        except BaseException:
            failed.set()
            raise

    errors: list[BaseException | None] = []
    try:
        with ThreadPoolExecutor(len(feeders), "dask-infer-tower") as pool:
            parts = [as_part_of_task(partial(run, feed)) for feed in feeders]
            futures = [pool.submit(part) for part in parts]
            wait = Waiting(worker, comms_of(worker), current_task_key())
            try:
                meanwhile()
                return [wait(future) for future in futures]
            except BaseException as error:
                failed.set()
                errors.append(error)
    finally:
        failed_beside.reset(token)
    errors += [future.exception() for future in futures if not future.cancelled()]
    raise next(filter(_is_cause, errors), None) or Reschedule


def _is_cause(error: BaseException | None) -> bool:
    """Whether it is no mere consequence of another feeder's error."""
    return error is not None and not isinstance(error, (Abandoned, Reschedule))
