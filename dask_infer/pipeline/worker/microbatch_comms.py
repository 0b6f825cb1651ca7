"""A worker's handlers for microbatches: where its stages and its feeders are called.

One a worker, on its event loop. A microbatch goes feeder -> stage 0 -> stage 1 -> ...
by nested calls over the cluster's own comms::

    feeder    offer(way)                      no bytes yet: it waits at the door
    (stage 0 of the first of several instances passes it to the idlest one's door)
    stage 0   fetch(number) from the feeder   once there is a place in the window
    stage k   forward(way, load) to stage k+1
    last      outputs(way, load) to the feeder
              the answers come back along the calls: done, failed, lost or stale

A handler answers with data and never raises what means a closed connection: Dask would
close its caller's connection without an answer (distributed 2026.8.0), and the wrong
stage would be blamed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from distributed import Worker

from dask_infer.pipeline.messages.microbatch import Failure, Load, Lost, Target, Way
from dask_infer.pipeline.worker.dispatcher import Dispatcher
from dask_infer.pipeline.worker.stage import Stage

logger = logging.getLogger(__name__)

Answer = dict[str, Any]

#: Answers of a stage to its caller.
DONE: Answer = {"status": "done"}
LOST: Answer = {"status": "lost"}


class Parcel:
    """A microbatch at its feeder, until its outputs are there."""

    _numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        self.number = next(self._numbers)
        self.load = load
        self.attempt = 0
        #: The instance that fetched it in this attempt.
        self.taken: Target | None = None
        self.outputs: asyncio.Future[Load] = loop.create_future()


class Switchboard:
    """The stages and feeders of one worker.

    Parameters
    ----------
    worker
        The Dask worker whose handlers these become.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = weakref.ref(worker)
        self.address: str = worker.address
        self.loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop  # type: ignore[attr-defined]
        self.stages: dict[tuple[str, int], Stage] = {}
        #: Microbatches of the feeders here, until their outputs came.
        self.parcels: dict[int, Parcel] = {}
        self.dispatcher = Dispatcher()
        #: Stage tasks that wait for a thread here, each for one feeder to make way.
        self.waiting: set[str] = set()
        for name in ("offer", "fetch", "forward", "outputs", "make_way"):
            worker.handlers[f"infer_{name}"] = getattr(self, f"_{name}")
        _boards[worker.address] = self

    def __repr__(self) -> str:
        stages = ", ".join(map(repr, self.stages.values())) or "no stage"
        return f"<Switchboard {self.address} {stages}, {len(self.parcels)} parcels>"

    def open(self, stage: Stage) -> None:
        """Let microbatches reach a stage."""
        self.stages[stage.group, stage.index] = stage

    def close(self, stage: Stage) -> None:
        """Answer those who wait for a stage, and take no more; from any thread."""

        def close() -> None:
            stage.close()
            if self.stages.get((stage.group, stage.index)) is stage:
                del self.stages[stage.group, stage.index]

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(close)

    def claim(self) -> bool:
        """Whether the calling feeder is the one that makes way for a stage task."""
        try:
            self.waiting.pop()
        except KeyError:
            return False
        return True

    async def call(self, address: str, operation: str, way: Way, load: Load) -> Answer:
        """Call a handler of a worker; in this process without a message."""
        local = _boards.get(address)
        if local is not None and local.loop is self.loop:
            handler: Callable[..., Coroutine[Any, Any, Answer]]
            handler = getattr(local, f"_{operation}_here")
            return await handler(way, load)
        worker = self.worker()
        if worker is None:
            raise Lost
        remote = getattr(worker.rpc(address), f"infer_{operation}")
        try:
            answer = await remote(way=way.to_message(), load=_sent(load))
        except RuntimeError:  # "ConnectionPool is closed": this worker goes
            if worker.status.name != "running":
                raise Lost from None
            raise
        if not isinstance(answer, dict):  # a worker that never heard of groups
            raise Lost
        return answer

    # --- what a feeder does ------------------------------------------------------

    async def send(self, way: Way) -> Answer:
        """Offer a microbatch to the first stage; return what became of it."""
        return await self.call(way.route[0], "offer", way, Load())

    def _is_current(self, way: Way) -> Parcel | None:
        parcel = self.parcels.get(way.number)
        return parcel if parcel and parcel.attempt == way.attempt else None

    async def _fetch_here(self, way: Way, load: Load) -> Answer:
        parcel = self._is_current(way)
        if parcel is None:
            return LOST
        parcel.taken = Target(way.group, way.epoch, way.route)
        return {"status": "done", "load": parcel.load}

    async def _outputs_here(self, way: Way, load: Load) -> Answer:
        parcel = self._is_current(way)
        if parcel is not None and not parcel.outputs.done():
            parcel.outputs.set_result(load)
        return DONE

    # --- what a stage does -------------------------------------------------------

    async def _offer_here(self, way: Way, load: Load) -> Answer:
        stage = self.stages.get((way.group, 0))
        if stage is None:
            return LOST
        if way.among:
            return await self._dispatched(stage, way)
        return await _answered(stage, way, self._admitted(stage, way))

    async def _dispatched(self, stage: Stage, way: Way) -> Answer:
        """Pass an offer on; also while the stage here is placed anew."""
        async with self.dispatcher.place(way.among, stage.window) as target:
            try:
                return await self.call(target.route[0], "offer", way.to(target), Load())
            except (Lost, OSError):
                return LOST

    async def _admitted(self, stage: Stage, way: Way) -> Answer:
        async with stage.door:
            answer = await self.call(way.feeder, "fetch", way, Load())
            if answer["status"] != "done":
                return LOST
            return await self._through(stage, way, _received(answer["load"]))

    async def _forward_here(self, way: Way, load: Load, index: int = 0) -> Answer:
        index = way.route.index(self.address)
        stage = self.stages.get((way.group, index))
        if stage is None:
            return LOST
        return await _answered(stage, way, self._through(stage, way, load))

    async def _through(self, stage: Stage, way: Way, load: Load) -> Answer:
        """Run a microbatch here and pass the result on."""
        result = await stage.run(way, load)
        if isinstance(result, Failure):
            return {"status": "failed", "failure": vars(result)}
        following = way.route[stage.index + 1 :]
        if following:
            return await self.call(following[0], "forward", way, result)
        return await self.call(way.feeder, "outputs", way, result)

    # --- the handlers ------------------------------------------------------------

    async def _offer(self, way: dict[str, Any], load: Any) -> Answer:
        return await self._offer_here(Way.from_message(way), Load())

    async def _forward(self, way: dict[str, Any], load: Any) -> Answer:
        return await self._forward_here(Way.from_message(way), Load(load))

    async def _fetch(self, way: dict[str, Any], load: Any) -> Answer:
        answer = await self._fetch_here(Way.from_message(way), Load())
        if "load" in answer:
            return {"status": "done", "load": answer["load"].packed()}
        return answer

    async def _outputs(self, way: dict[str, Any], load: Any) -> Answer:
        return await self._outputs_here(Way.from_message(way), Load(load))

    async def _make_way(self, key: str) -> Answer:
        worker = self.worker()
        task = worker and worker.state.tasks.get(key)
        if task and task.state in ("ready", "constrained"):  # it has no thread yet
            self.waiting.add(key)
        return DONE


async def _answered(
    stage: Stage, way: Way, work: Coroutine[Any, Any, Answer]
) -> Answer:
    """Do a stage's part of a way; whatever is lost on it is the answer."""
    try:
        stage.admit(way.epoch)
    except Lost:
        work.close()
        return LOST
    try:
        answer: Answer = await stage.unless_stale(work)
        return answer
    except (Lost, OSError):
        return LOST


def _sent(load: Load) -> Any:
    return load.packed() if load.message is not None or load.values else None


def _received(load: Any) -> Load:
    return load if isinstance(load, Load) else Load(load)


#: The switchboards of this process by their workers' addresses.
_boards: weakref.WeakValueDictionary[str, Switchboard] = weakref.WeakValueDictionary()
_of: weakref.WeakKeyDictionary[Worker, Switchboard] = weakref.WeakKeyDictionary()


_making = threading.Lock()


def switchboard(worker: Worker) -> Switchboard:
    """Return the switchboard of a worker; made when it is first asked for."""
    with _making:  # a second one would take the handlers of the first
        board = _of.get(worker)
        if board is None:
            board = _of[worker] = Switchboard(worker)
        return board
