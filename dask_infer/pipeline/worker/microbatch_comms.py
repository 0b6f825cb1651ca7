"""A worker's handlers for microbatches: where its stages and its feeders are called.

One a worker, on its event loop. A microbatch goes feeder -> stage 0 -> stage 1 -> ...
by nested calls over the cluster's own comms::

    feeder    offer(header)                      no bytes yet: it waits at the door
    (stage 0 of the first of several instances passes it to the idlest one's door)
    stage 0   fetch(number) from the feeder   once there is a place in the window
    stage k   forward(header, payload) to stage k+1
    last      outputs(header, payload) to the feeder
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

from dask_infer.pipeline.messages.microbatch import (
    Failure,
    Header,
    Lost,
    Payload,
    Target,
)
from dask_infer.pipeline.worker.dispatcher import Dispatcher
from dask_infer.pipeline.worker.stage import Stage

logger = logging.getLogger(__name__)

Answer = dict[str, Any]

#: Answers of a stage to its caller.
DONE: Answer = {"status": "done"}
LOST: Answer = {"status": "lost"}


class InFlight:
    """A microbatch at its feeder, until its outputs are there."""

    _numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(self, payload: Payload, loop: asyncio.AbstractEventLoop) -> None:
        self.number = next(self._numbers)
        self.payload = payload
        self.attempt = 0
        #: The instance that fetched it in this attempt.
        self.taken: Target | None = None
        self.outputs: asyncio.Future[Payload] = loop.create_future()


class MicrobatchComms:
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
        self.all_in_flight: dict[int, InFlight] = {}
        self.dispatcher = Dispatcher()
        #: Stage tasks that wait for a thread here, each for one feeder to make way.
        self.waiting: set[str] = set()
        for name in ("offer", "fetch", "forward", "outputs", "make_way"):
            worker.handlers[f"infer_{name}"] = getattr(self, f"_{name}")
        _comms_by_address[worker.address] = self

    def __repr__(self) -> str:
        stages = ", ".join(map(repr, self.stages.values())) or "no stage"
        count = len(self.all_in_flight)
        return f"<MicrobatchComms {self.address} {stages}, {count} in flight>"

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

    async def call(
        self, address: str, operation: str, header: Header, payload: Payload
    ) -> Answer:
        """Call a handler of a worker; in this process without a message."""
        local = _comms_by_address.get(address)
        if local is not None and local.loop is self.loop:
            handler: Callable[..., Coroutine[Any, Any, Answer]]
            handler = getattr(local, f"_{operation}_here")
            return await handler(header, payload)
        worker = self.worker()
        if worker is None:
            raise Lost
        remote = getattr(worker.rpc(address), f"infer_{operation}")
        try:
            answer = await remote(header=header.to_message(), payload=_sent(payload))
        except RuntimeError:  # "ConnectionPool is closed": this worker goes
            if worker.status.name != "running":
                raise Lost from None
            raise
        if not isinstance(answer, dict):  # a worker that never heard of groups
            raise Lost
        return answer

    # --- what a feeder does ------------------------------------------------------

    async def send(self, header: Header) -> Answer:
        """Offer a microbatch to the first stage; return what became of it."""
        return await self.call(header.route[0], "offer", header, Payload())

    def _is_current(self, header: Header) -> InFlight | None:
        in_flight = self.all_in_flight.get(header.number)
        return in_flight if in_flight and in_flight.attempt == header.attempt else None

    async def _fetch_here(self, header: Header, payload: Payload) -> Answer:
        in_flight = self._is_current(header)
        if in_flight is None:
            return LOST
        in_flight.taken = Target(header.group, header.epoch, header.route)
        return {"status": "done", "payload": in_flight.payload}

    async def _outputs_here(self, header: Header, payload: Payload) -> Answer:
        in_flight = self._is_current(header)
        if in_flight is not None and not in_flight.outputs.done():
            in_flight.outputs.set_result(payload)
        return DONE

    # --- what a stage does -------------------------------------------------------

    async def _offer_here(self, header: Header, payload: Payload) -> Answer:
        stage = self.stages.get((header.group, 0))
        if stage is None:
            return LOST
        if header.among:
            return await self._dispatched(stage, header)
        return await _answered(stage, header, self._admitted(stage, header))

    async def _dispatched(self, stage: Stage, header: Header) -> Answer:
        """Pass an offer on; also while the stage here is placed anew."""
        async with self.dispatcher.place(header.among, stage.window) as target:
            try:
                return await self.call(
                    target.route[0], "offer", header.to(target), Payload()
                )
            except (Lost, OSError):
                return LOST

    async def _admitted(self, stage: Stage, header: Header) -> Answer:
        async with stage.admitted():
            answer = await self.call(header.feeder, "fetch", header, Payload())
            if answer["status"] != "done":
                return LOST
            return await self._through(stage, header, _received(answer["payload"]))

    async def _forward_here(
        self, header: Header, payload: Payload, index: int = 0
    ) -> Answer:
        index = header.route.index(self.address)
        stage = self.stages.get((header.group, index))
        if stage is None:
            return LOST
        return await _answered(stage, header, self._through(stage, header, payload))

    async def _through(self, stage: Stage, header: Header, payload: Payload) -> Answer:
        """Run a microbatch here and pass the result on."""
        result = await stage.run(header, payload)
        if isinstance(result, Failure):
            return {"status": "failed", "failure": vars(result)}
        following = header.route[stage.index + 1 :]
        if following:
            return await self.call(following[0], "forward", header, result)
        return await self.call(header.feeder, "outputs", header, result)

    # --- the handlers ------------------------------------------------------------

    async def _offer(self, header: dict[str, Any], payload: Any) -> Answer:
        return await self._offer_here(Header.from_message(header), Payload())

    async def _forward(self, header: dict[str, Any], payload: Any) -> Answer:
        return await self._forward_here(Header.from_message(header), Payload(payload))

    async def _fetch(self, header: dict[str, Any], payload: Any) -> Answer:
        answer = await self._fetch_here(Header.from_message(header), Payload())
        if "payload" in answer:
            return {"status": "done", "payload": answer["payload"].packed()}
        return answer

    async def _outputs(self, header: dict[str, Any], payload: Any) -> Answer:
        return await self._outputs_here(Header.from_message(header), Payload(payload))

    async def _make_way(self, key: str) -> Answer:
        worker = self.worker()
        task = worker and worker.state.tasks.get(key)
        if task and task.state in ("ready", "constrained"):  # it has no thread yet
            self.waiting.add(key)
        return DONE


async def _answered(
    stage: Stage, header: Header, work: Coroutine[Any, Any, Answer]
) -> Answer:
    """Do a stage's part for a microbatch; whatever is lost on it is the answer."""
    try:
        stage.admit(header.epoch)
    except Lost:
        work.close()
        return LOST
    try:
        answer: Answer = await stage.unless_stale(work)
        return answer
    except (Lost, OSError):
        return LOST


def _sent(payload: Payload) -> Any:
    return payload.packed() if payload.message is not None or payload.values else None


def _received(payload: Any) -> Payload:
    return payload if isinstance(payload, Payload) else Payload(payload)


#: The comms of this process by their workers' addresses.
_comms_by_address: weakref.WeakValueDictionary[str, MicrobatchComms] = (
    weakref.WeakValueDictionary()
)
_of: weakref.WeakKeyDictionary[Worker, MicrobatchComms] = weakref.WeakKeyDictionary()


_making = threading.Lock()


def comms_of(worker: Worker) -> MicrobatchComms:
    """Return the comms_of of a worker; made when it is first asked for."""
    with _making:  # a second one would take the handlers of the first
        comms = _of.get(worker)
        if comms is None:
            comms = _of[worker] = MicrobatchComms(worker)
        return comms
