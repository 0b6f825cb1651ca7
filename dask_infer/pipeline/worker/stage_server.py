"""A stage, or a shard of it: a queue on the event loop, and a thread that empties it.

The thread is that of the stage's Dask task. Invariants:

1. Only the newest epoch is served: what belongs to an older one is answered as lost.
2. Every microbatch that was taken is answered once, also where the thread ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle
import queue
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from time import perf_counter
from typing import Any, NamedTuple

from dask_infer.batch.outputs.pick import pick
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.device.stream import Pending, Stream
from dask_infer.errors import OutputError
from dask_infer.faults.deadline import DeadlineExceeded, within
from dask_infer.metrics.recorder import Recorder, add, meter
from dask_infer.metrics.sums import Label
from dask_infer.metrics.totals import recording
from dask_infer.model.split.shards import Collective, exchanging
from dask_infer.pipeline.messages.microbatch import Failure, Header, Payload, StageLost
from dask_infer.pipeline.messages.stage_spec import StageSpec
from dask_infer.pipeline.worker.admission import Window
from dask_infer.pipeline.worker.remote_call import called, flattened
from dask_infer.pipeline.worker.shards.shard_exchange import (
    Send,
    ShardExchange,
    ShardFailed,
)
from dask_infer.pipeline.worker.shards.shard_turns import ShardTurns
from dask_infer.plan.window import window_size
from dask_infer.replica.cache import Replica
from dask_infer.replica.measured import ForwardTimes, ThreadTimes
from dask_infer.replica.worker_place import Place
from dask_infer.spec import Outputs

#: Seconds between two looks whether the stage is still wanted.
POLL_SECONDS = 0.1


class Queued(NamedTuple):
    """A microbatch in the stage's queue."""

    header: Header
    payload: Payload
    answer: asyncio.Future[Payload | Failure]


class StageServer:
    """One stage of one instance on one worker, or a shard of it.

    Parameters
    ----------
    spec
        The stage.
    loop
        The worker's event loop.
    worker
        The worker's address.
    send
        Sends to other shards, where the stage has several.
    """

    def __init__(
        self,
        spec: StageSpec,
        loop: asyncio.AbstractEventLoop,
        worker: str,
        send: Send | None = None,
    ) -> None:
        self.spec, self.loop, self.worker = spec, loop, worker
        self.instance, self.index = spec.instance, spec.layers.stage
        #: The oldest epoch that is still served.
        self.epoch = spec.epoch
        self.closed = False
        #: Limits the microbatches in flight; kept by stage 0.
        self.window = Window(window_size(spec.group.layout.window, spec.stages))
        #: Counters of the stage while it serves: its thread divides its own time, the
        #: event loop counts under names of its own.
        self.recorder: Recorder | None = None
        #: Order and exchanges of the microbatches that several shards run together.
        self.turns: ShardTurns[Queued] = ShardTurns()
        self.exchange: ShardExchange | None = None
        if send is not None:
            shard = (spec.instance, self.index, spec.layers.shard)
            self.exchange = ShardExchange(*shard, loop, send)
        self._queue: queue.SimpleQueue[Queued] = queue.SimpleQueue()
        #: Set, and replaced, when an epoch ends.
        self._epoch_ended = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._queue.qsize()} waiting"
        return f"<StageServer {self.spec.layers.name} of {self.instance}, {state}>"

    # --- on the event loop -------------------------------------------------------

    def is_past(self, epoch: int) -> bool:
        """Whether an epoch is served no more."""
        return self.closed or epoch < self.epoch

    async def within_epoch(self, epoch: int, work: Coroutine[Any, Any, Any]) -> Any:
        """Await work for a microbatch; abandon it where a newer epoch comes.

        Raises
        ------
        StageLost
            If the epoch ended.
        """
        if self.is_past(epoch):
            work.close()
            raise StageLost
        if epoch > self.epoch:
            self.epoch = epoch
            self._end_epoch()
        ended = asyncio.ensure_future(self._epoch_ended.wait())
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({ended, task}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise StageLost
        finally:
            ended.cancel()
            task.cancel()

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Hold a place in the window; count the wait for it, and the time in it."""
        asked, window = perf_counter(), self.window
        try:
            async with window.admit():
                began = perf_counter()
                self._count("queued_seconds", began - asked)
                self._show(window)
                try:
                    yield
                finally:
                    self._count("inside_seconds", perf_counter() - began)
        finally:
            self._show(window)

    def _count(self, name: str, amount: float) -> None:
        if self.recorder is not None:
            self.recorder.add(name, amount)

    def _show(self, window: Window) -> None:
        if self.recorder is not None and window is self.window:
            self.recorder.levels = {"window": window.size, "inside": window.inside}

    async def run(self, header: Header, payload: Payload) -> Payload | Failure:
        """Run one microbatch in the stage's thread."""
        answer: asyncio.Future[Payload | Failure] = self.loop.create_future()
        began = perf_counter()
        item = Queued(header, payload, answer)
        if self.exchange is None:
            self._queue.put(item)
        elif (known := self.turns.answer(header.turn)) is not None:
            answer = known
        else:
            for due in self.turns.take(header.turn, item, answer):
                self._queue.put(due)
        try:
            return await answer
        finally:
            self._count("stage_seconds", perf_counter() - began)

    def close(self) -> None:
        """Answer what waits as lost, and take no more."""
        self.closed = True
        self._end_epoch()

    def _end_epoch(self) -> None:
        self.window = Window(self.window.size)
        self.turns.end()
        self.turns = ShardTurns()
        if self.exchange is not None:
            self.exchange.begin_epoch(self.epoch)
        self._epoch_ended.set()
        self._epoch_ended = asyncio.Event()

    # --- in the stage's thread ---------------------------------------------------

    def serve(
        self,
        replica: Replica,
        place: Place,
        timeout: float | None,
        wanted: Callable[[], bool],
    ) -> bool:
        """Run microbatches until the stage is not wanted any more.

        Returns whether it is: then the replica is stuck in a forward, and the stage
        continues with a fresh one.
        """
        if self.exchange is not None:
            self.exchange.wanted = wanted
        label = Label(self.spec.group.model.label, self.index)
        with recording(self.worker, label, "idle") as self.recorder:
            return self._serve(replica, place, timeout, wanted)

    def _serve(
        self,
        replica: Replica,
        place: Place,
        timeout: float | None,
        wanted: Callable[[], bool],
    ) -> bool:
        stream = replica.device.stream()
        while wanted():
            try:
                item = self._queue.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if item.answer.done():  # of an older epoch
                continue
            stuck = False
            try:
                result: Payload | Failure = self._forward(
                    item, replica, place, stream, timeout
                )
                replica.count(item.header.rows)
                # All shards of a stage run the same rows.
                if not self.spec.layers.shard:
                    add("rows", item.header.rows)
                    add("forwards")
            except StageLost:  # the epoch ended during an exchange
                continue
            except BaseException as error:  # SystemExit would end the worker
                result = self._failure(error, replica)
                stuck = isinstance(error, DeadlineExceeded)
            self._answer(item, result)
            if stuck:
                return True
        return False

    def _forward(
        self,
        item: Queued,
        replica: Replica,
        place: Place,
        stream: Stream,
        timeout: float | None,
    ) -> Payload:
        """Run one microbatch through the layers that live here.

        This thread holds the device: one that a timeout abandons would keep it.
        """
        what = f"forward of {replica.spec.name}, {self.spec.layers.name}"
        with meter("transfer"):
            values = item.payload.open()
        collective, alone = None, replica.device.exclusive()
        if self.exchange is not None:
            collective = self.exchange.begin(item.header)
            # Two models that each wait for a shard while they hold the device of the
            # other's would wait for ever.
            alone = contextlib.nullcontext()
        began, failed = self._now(), True
        try:
            with meter("wait"), alone, meter("forward"):
                pending = within(
                    timeout,
                    lambda: _launch(
                        values, item.header, replica, place, stream, collective
                    ),
                    what=what,
                )
            wait = timeout if stream.overlaps else None
            with meter("forward"):
                outputs = dict(within(wait, pending, what=what))
            failed = False
        finally:
            if collective is not None:
                collective.end(failed=failed)
        return Payload(values=outputs, times=self._times(began))

    def _now(self) -> tuple[ThreadTimes, float]:
        """Return the times of this thread, and the seconds of all its forwards."""
        assert self.recorder is not None
        return ThreadTimes.now(), self.recorder.seconds.get("forward", 0.0)

    def _times(self, began: tuple[ThreadTimes, float]) -> ForwardTimes:
        """Return what the forwards took since some moment."""
        now, forward = self._now()
        spent = now.since(began[0])
        return ForwardTimes(spent.alone * (forward - began[1]), spent.cpu)

    def _failure(self, error: BaseException, replica: Replica) -> Failure:
        memory = is_out_of_memory(error)
        if isinstance(error, OutputError):  # raised by what knows no model
            error.args = (f'model "{replica.spec.name}": {error}',)
        failure = Failure.of(error, self.spec, self.worker, memory=memory)
        if isinstance(error, ShardFailed):
            failure = replace(failure, of_other=True)
        if memory:
            replica.device.release_memory()
        return failure

    def _answer(self, item: Queued, result: Payload | Failure) -> None:
        def settle() -> None:
            if not item.answer.done():
                item.answer.set_result(result)

        # On a closed loop nothing waits for it.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(settle)


def _launch(
    values: dict[Any, Any],
    header: Header,
    replica: Replica,
    place: Place,
    stream: Stream,
    collective: Collective | None,
) -> Pending:
    replica.device.enter_forward(place.cpu_threads)
    _, values = stream.upload((), values)
    with exchanging(collective):
        outputs = _outputs(values, replica, header)
    return stream.download(outputs)


def _outputs(
    values: dict[Any, Any], replica: Replica, header: Header
) -> list[tuple[Any, Any]]:
    model = replica.loaded
    if replica.part is not None and replica.part.chain is not None:
        return list(model.call((values,), {}).items())
    args, kwargs = called(values)
    output = model.call(args, kwargs, header.method)
    if header.outputs is None:
        return list(flattened(output).items())
    return pick(output, _read_outputs(header.outputs))


@functools.lru_cache(maxsize=256)
def _read_outputs(outputs: bytes) -> Outputs:
    return pickle.loads(outputs)  # type: ignore[no-any-return]
