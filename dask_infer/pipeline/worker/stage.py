"""A stage while it serves: a queue on the event loop, and a thread that runs it.

The thread is that of the stage's Dask task. Invariants:

1. Only the newest epoch is served: what belongs to an older one is answered as stale.
2. Every microbatch that was taken is answered once, also where the thread ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import pickle
import queue
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from dask_infer.batch.outputs.pick import pick
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.device.stream import Pending, Stream
from dask_infer.faults.deadline import DeadlineExceeded, within
from dask_infer.metrics.recorder import Recorder, add, meter
from dask_infer.metrics.sums import Label
from dask_infer.metrics.totals import recording
from dask_infer.pipeline.messages.microbatch import Failure, Header, Lost, Payload
from dask_infer.pipeline.worker.group_outputs import called, flattened
from dask_infer.pipeline.worker.window import Window
from dask_infer.replica.cache import Replica
from dask_infer.replica.worker_place import Place
from dask_infer.spec import Outputs

#: Seconds between two looks whether the stage is still wanted.
LOOK = 0.1


@dataclass
class _Item:
    """A microbatch in the stage's queue."""

    header: Header
    payload: Payload
    answer: asyncio.Future[Payload | Failure]


@dataclass(eq=False)
class Stage:
    """One stage of one group on one worker.

    Parameters
    ----------
    group, index, stages
        Name of the group's instance, place in it, and how many there are.
    epoch
        The oldest epoch that is still served.
    window
        Microbatches that the group admits; kept at the door of stage 0.
    loop
        The worker's event loop.
    """

    group: str
    index: int
    stages: int
    epoch: int
    window: int
    loop: asyncio.AbstractEventLoop
    worker: str
    #: The model, for counters.
    label: str
    closed: bool = False
    #: Counters of the stage while it serves: its thread divides its own time, the event
    #: loop counts under names of its own.
    recorder: Recorder | None = None
    _queue: queue.SimpleQueue[_Item] = field(default_factory=queue.SimpleQueue)
    _open: set[asyncio.Future[Any]] = field(default_factory=set)
    _door: Window | None = None
    _stale: asyncio.Event = field(default_factory=asyncio.Event)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self._open)} waiting"
        return f"<Stage {self.index} of {self.stages} of {self.group}, {state}>"

    # --- on the event loop -------------------------------------------------------

    @property
    def door(self) -> Window:
        """The window of the current epoch."""
        if self._door is None:
            self._door = Window(self.window)
        return self._door

    @contextlib.asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Hold a place in the window; count the wait for it, and the time in it."""
        asked, door = perf_counter(), self.door
        try:
            async with door:
                began = perf_counter()
                self._count("queued_seconds", began - asked)
                self._show(door)
                try:
                    yield
                finally:
                    self._count("inside_seconds", perf_counter() - began)
        finally:
            self._show(door)

    def _count(self, name: str, amount: float) -> None:
        if self.recorder is not None:
            self.recorder.add(name, amount)

    def _show(self, door: Window) -> None:
        if self.recorder is not None and door is self._door:
            self.recorder.levels = {"window": door.size, "inside": door.inside}

    def admit(self, epoch: int) -> None:
        """Refuse an older epoch; a newer one ends all that is older."""
        if self.closed or epoch < self.epoch:
            raise Lost
        if epoch > self.epoch:
            self.epoch = epoch
            self._abandon()

    async def unless_stale(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await work of the current epoch; abandon it where a newer one comes."""
        stale = asyncio.ensure_future(self._stale.wait())
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({stale, task}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Lost
        finally:
            for future in (stale, task):
                if not future.done():
                    future.cancel()

    async def run(self, header: Header, payload: Payload) -> Payload | Failure:
        """Run one microbatch in the stage's thread."""
        self.admit(header.epoch)
        answer: asyncio.Future[Payload | Failure] = self.loop.create_future()
        self._open.add(answer)
        began = perf_counter()
        try:
            self._queue.put(_Item(header, payload, answer))
            return await answer
        finally:
            self._open.discard(answer)
            self._count("stage_seconds", perf_counter() - began)

    def close(self) -> None:
        """Answer whoever waits; nothing is taken any more."""
        self.closed = True
        self._abandon()

    def _abandon(self) -> None:
        for answer in list(self._open):
            if not answer.done():
                answer.set_exception(Lost())
        self._door = None
        self._stale.set()
        self._stale = asyncio.Event()

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
        goes on with a fresh one.
        """
        label = Label(self.label, self.index)
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
                item = self._queue.get(timeout=LOOK)
            except queue.Empty:
                continue
            if item.answer.done():  # of an older epoch
                continue
            try:
                result: Payload | Failure = self._forward(
                    item, replica, place, stream, timeout
                )
                replica.count(item.header.rows)
                add("rows", item.header.rows)
                add("forwards")
            except BaseException as error:  # SystemExit would end the worker
                result = self._failure(error, replica)
                if isinstance(error, DeadlineExceeded):
                    self._answer(item, result)
                    return True
            self._answer(item, result)
        return False

    def _forward(
        self,
        item: _Item,
        replica: Replica,
        place: Place,
        stream: Stream,
        timeout: float | None,
    ) -> Payload:
        """Run one microbatch through the layers that live here.

        The device is held by this thread: one that a timeout abandons would keep it.
        """
        what = f"forward of {replica.spec.name}, stage {self.index}"
        with meter("transfer"):
            values = item.payload.open()
        with meter("wait"), replica.device.exclusive(), meter("forward"):
            pending = within(
                timeout,
                lambda: _launch(values, item.header, replica, place, stream),
                what=what,
            )
        wait = timeout if stream.overlaps else None
        with meter("forward"):
            return Payload(values=dict(within(wait, pending, what=what)))

    def _failure(self, error: BaseException, replica: Replica) -> Failure:
        memory = is_out_of_memory(error)
        failure = Failure.of(error, self.index, self.stages, self.worker, memory)
        if memory:
            replica.device.release_memory()
        return failure

    def _answer(self, item: _Item, result: Payload | Failure) -> None:
        def settle() -> None:
            if not item.answer.done():
                item.answer.set_result(result)

        # A loop that is closed has nobody who waits.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(settle)


def _launch(
    values: dict[Any, Any],
    header: Header,
    replica: Replica,
    place: Place,
    stream: Stream,
) -> Pending:
    replica.device.enter_forward(place.cpu_threads)
    _, values = stream.upload((), values)
    return stream.download(_outputs(values, replica, header))


def _outputs(
    values: dict[Any, Any], replica: Replica, header: Header
) -> list[tuple[Any, Any]]:
    model = replica.loaded
    if replica.part is not None:
        return list(model.call((values,), {}).items())
    args, kwargs = called(values)
    output = model.call(args, kwargs, header.method)
    if header.outputs is None:
        return list(flattened(output).items())
    return pick(output, _read_outputs(header.outputs))


@functools.lru_cache(maxsize=256)
def _read_outputs(outputs: bytes) -> Outputs:
    return pickle.loads(outputs)  # type: ignore[no-any-return]
