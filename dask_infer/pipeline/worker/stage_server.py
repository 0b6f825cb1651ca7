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
from time import perf_counter
from typing import Any, NamedTuple, TypeAlias, TypeVar

from dask_infer.batch.outputs.pick import pick
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.device.stream import Pending, Stream
from dask_infer.errors import OutputError
from dask_infer.faults.deadline import DeadlineExceeded, within
from dask_infer.metrics.recorder import Recorder, add, meter
from dask_infer.metrics.sums import Label
from dask_infer.metrics.totals import recording
from dask_infer.model.split.shards import exchanging
from dask_infer.pipeline.messages.microbatch import (
    LOST,
    Answer,
    Failure,
    Header,
    Payload,
    StageLost,
)
from dask_infer.pipeline.messages.stage_spec import StageSpec
from dask_infer.pipeline.worker.admission import Window
from dask_infer.pipeline.worker.remote_call import called, flattened
from dask_infer.pipeline.worker.shard_turns import (
    ShardFailed,
    ShardTurns,
    TurnCollective,
)
from dask_infer.plan.window import window_size
from dask_infer.replica.cache import Replica
from dask_infer.replica.measured import ForwardTimes, ThreadTimes
from dask_infer.replica.worker_place import Place
from dask_infer.spec import Outputs

T = TypeVar("T")
#: Calls a handler of a worker by the address and the name of the operation.
Call: TypeAlias = Callable[[str, str, Header, Payload], Coroutine[Any, Any, Answer]]

#: Seconds between two looks whether the stage is still wanted.
POLL_SECONDS = 0.1
#: Seconds before another shard is called again whose connection failed.
PAUSE = 0.1


class Queued(NamedTuple):
    """A microbatch in the stage's queue."""

    header: Header
    payload: Payload
    answer: asyncio.Future[Payload | Failure]
    #: Those of the epoch in which it came.
    turns: ShardTurns


class StageServer:
    """One stage of one instance on one worker, or a shard of it."""

    def __init__(
        self,
        spec: StageSpec,
        loop: asyncio.AbstractEventLoop,
        worker: str,
        call: Call,
    ) -> None:
        self.spec, self.loop, self.worker, self._call = spec, loop, worker, call
        self.instance, self.index = spec.instance, spec.layers.stage
        #: The oldest epoch that is still served.
        self.epoch = spec.epoch
        self.closed = False
        #: Limits the microbatches in flight; kept by stage 0.
        self.window = Window(window_size(spec.group.layout.window, spec.stages))
        #: Counters of the stage while it serves: its thread divides its own time, the
        #: event loop counts under names of its own.
        self.recorder: Recorder | None = None
        #: The microbatches that several shards run together.
        self.turns = ShardTurns()
        self.in_shards = spec.layers.shards > 1
        self._queue: queue.SimpleQueue[Queued] = queue.SimpleQueue()
        #: Whether the stage is still wanted.
        self._wanted: Callable[[], bool] = lambda: True
        #: What is done within the epoch, and cancelled with it.
        self._work: set[asyncio.Future[Any]] = set()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self._queue.qsize()} waiting"
        return f"<StageServer {self.spec.layers.name} of {self.instance}, {state}>"

    # --- on the event loop -------------------------------------------------------

    def serves(self, epoch: int) -> bool:
        """Whether an epoch is served; a newer one ends those before it."""
        if self.closed or epoch < self.epoch:
            return False
        if epoch > self.epoch:
            self.epoch = epoch
            self._end_epoch()
        return True

    async def within_epoch(
        self, epoch: int, work: Coroutine[Any, Any, Answer]
    ) -> Answer:
        """Do a part of a microbatch's work; it is lost where its epoch ends."""
        if not self.serves(epoch):
            work.close()
            return LOST
        task = self._start(work)
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()
        if task.cancelled() or isinstance(task.exception(), (StageLost, OSError)):
            return LOST
        return task.result()

    async def keep(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work to its end or its epoch's, also where the caller is cancelled."""
        return await asyncio.shield(self._start(work))

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Future[Any]) -> None:
        self._work.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio logs it as never retrieved

    async def call_shard(
        self, address: str, operation: str, header: Header, payload: Payload
    ) -> Answer:
        """Call another shard, which must not miss it, until it answers."""
        while self.serves(header.target.epoch):
            with contextlib.suppress(OSError):
                return await self._call(address, operation, header, payload)
            await asyncio.sleep(PAUSE)
        return LOST

    def _give(self, header: Header, part: dict[str, Any]) -> None:
        """Send a part of a tensor to the other shards; from the stage's thread."""
        others = list(header.target.stages[self.index])
        del others[self.spec.layers.shard]
        payload = Payload(values=part)

        def start() -> None:
            for address in others:
                self._start(self.call_shard(address, "part", header, payload))

        self.loop.call_soon_threadsafe(start)

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Hold a place in the window; count the wait for it, and the time in it."""
        asked = perf_counter()
        try:
            async with self.window.admit():
                began = perf_counter()
                self._count("queued_seconds", began - asked)
                self._show_window()
                try:
                    yield
                finally:
                    self._count("inside_seconds", perf_counter() - began)
        finally:
            self._show_window()

    def _count(self, name: str, amount: float) -> None:
        if self.recorder is not None:
            self.recorder.add(name, amount)

    def _show_window(self) -> None:
        window = self.window
        if self.recorder is not None:
            self.recorder.levels = {"window": window.size, "inside": window.inside}

    async def run(self, header: Header, payload: Payload) -> Payload | Failure:
        """Run one microbatch in the stage's thread."""
        answer: asyncio.Future[Payload | Failure] = self.loop.create_future()
        began = perf_counter()
        turns = self.turns
        item = Queued(header, payload, answer, turns)
        if not self.in_shards:
            self._queue.put(item)
        elif (known := turns.answer(header.turn)) is not None:
            answer = known
        else:
            for due in turns.take(header.turn, item, answer):
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
        for task in self._work:
            task.cancel()

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
        self._wanted = wanted
        label = Label(self.spec.group.model.label, self.index)
        stream = replica.device.stream()
        with recording(self.worker, label, "idle") as self.recorder:
            while wanted():
                try:
                    item = self._queue.get(timeout=POLL_SECONDS)
                except queue.Empty:
                    continue
                if item.answer.done():  # of an older epoch
                    continue
                try:
                    result = self._forward(item, replica, place, stream, timeout)
                except StageLost:  # the epoch ended during an exchange
                    continue
                except BaseException as error:  # SystemExit would end the worker
                    self._answer(item, self._failure(error, replica))
                    if isinstance(error, DeadlineExceeded):
                        return True
                    continue
                replica.count(item.header.rows)
                # All shards of a stage run the same rows.
                if not self.spec.layers.shard:
                    add("rows", item.header.rows)
                    add("forwards")
                self._answer(item, result)
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
        if self.in_shards:
            turn, layers = item.header.turn, self.spec.layers
            give = functools.partial(self._give, item.header)
            collective = TurnCollective(item.turns, turn, layers, give, self._wanted)
            # Two models that each wait for a shard while they hold the device of the
            # other's would wait for ever.
            alone = contextlib.nullcontext()

        def launch() -> Pending:
            replica.device.enter_forward(place.cpu_threads)
            _, uploaded = stream.upload((), values)
            with exchanging(collective):
                outputs = _outputs(uploaded, replica, item.header)
            return stream.download(outputs)

        began, failed = self._now(), True
        try:
            with meter("wait"), alone, meter("forward"):
                pending = within(timeout, launch, what=what)
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
        if memory:
            replica.device.release_memory()
        return Failure.of(
            error,
            self.spec,
            self.worker,
            out_of_memory=memory,
            of_other=isinstance(error, ShardFailed),
        )

    def _answer(self, item: Queued, result: Payload | Failure) -> None:
        def settle() -> None:
            if not item.answer.done():
                item.answer.set_result(result)

        # On a closed loop nothing waits for it.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(settle)


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
