"""The calls by which microbatches travel: between the feeders and stages of workers.

One object a worker, on its event loop. A microbatch goes feeder -> stage 0 -> stage 1
-> ... by nested calls over the cluster's own comms::

    feeder    offer to stage 0                without payload: it waits for admission
    (of several instances, the first one's stage 0 offers it to the idlest)
    stage 0   fetch from the feeder           once it is admitted: the payload
    stage k   forward to stage k+1            the values between two stages
    last      outputs to the feeder
              the answers come back along the calls: done, failed or lost

    first shard of a stage   follow to each other one   the microbatch, with a turn
    any shard                part to each other one     of a tensor that a forward needs
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

from distributed import Worker

from dask_infer.pipeline.messages.group_state import Target
from dask_infer.pipeline.messages.microbatch import (
    DONE,
    LOST,
    Answer,
    Failure,
    Header,
    Payload,
    StageLost,
)
from dask_infer.pipeline.messages.stage_spec import KEY_PREFIX
from dask_infer.pipeline.worker.admission import Dispatcher
from dask_infer.pipeline.worker.stage_server import StageServer

Handler: TypeAlias = Callable[[Header, Payload], Coroutine[Any, Any, Answer]]
Work: TypeAlias = Callable[[StageServer, Header, Payload], Coroutine[Any, Any, Answer]]

EMPTY = Payload()
#: Seconds after which another feeder leaves its thread to a stage that still waits: it
#: may have waited for a resource, and another task took the first one's.
LEFT_SECONDS = 0.5


@dataclass(eq=False)
class InFlight:
    """A microbatch at its feeder, until its outputs are there."""

    payload: Payload
    #: As of `Header`.
    rows: int
    method: str | None = None
    columns: bytes | None = None
    #: How often it was sent in vain.
    attempt: int = 0
    #: The instances that it was offered to, and the one that fetched it.
    offered: tuple[Target, ...] = ()
    taken: Target | None = None
    #: What the last stage sent; of the event loop that sends it.
    outputs: asyncio.Future[Payload] = field(default_factory=asyncio.Future)
    number: int = field(default_factory=itertools.count().__next__)

    def has_moved(self, serving: tuple[Target, ...]) -> bool:
        """Whether the instance that took it does not serve as it did.

        Before any took it: whether others serve than those that it was offered to.
        """
        return self.taken not in serving if self.taken else self.offered != serving

    def withdraw(self) -> None:
        """End the attempt: from here on it gets and brings nothing."""
        self.attempt, self.taken = self.attempt + 1, None


class MicrobatchComms:
    """The stages and feeders of one worker, and the handlers that reach them."""

    def __init__(self, worker: Worker) -> None:
        self.worker = weakref.ref(worker)
        self.address: str = worker.address
        self.loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop  # type: ignore[attr-defined]
        self.stages: dict[tuple[str, int], StageServer] = {}
        #: The `GroupClient`s of the feeders here, by the keys of their groups.
        self.clients: dict[str, Any] = {}
        #: Microbatches of the feeders here, until their outputs came.
        self.in_flight: dict[int, InFlight] = {}
        self.dispatcher = Dispatcher()
        #: Keys of stage tasks, and when a feeder just left its thread to them.
        self._left_for: dict[str, float] = {}
        self.handlers: dict[str, Handler] = {
            "offer": self._offer,
            "fetch": self._fetch,
            "forward": partial(self._at_stage, self._run),
            "outputs": self._outputs,
            "follow": partial(self._at_stage, self._follow),
            "part": self._part,
        }
        worker.handlers["infer_microbatch"] = self._receive
        _by_address[worker.address] = self

    def __repr__(self) -> str:
        stages = ", ".join(map(repr, self.stages.values())) or "no stage"
        count = len(self.in_flight)
        return f"<MicrobatchComms {self.address} {stages}, {count} in flight>"

    def open(self, stage: StageServer) -> None:
        """Let microbatches reach a stage."""
        self.stages[stage.instance, stage.index] = stage

    def close(self, stage: StageServer) -> None:
        """Answer the microbatches of a stage, and take no more; from any thread."""

        def close() -> None:
            stage.close()
            if self.stages.get((stage.instance, stage.index)) is stage:
                del self.stages[stage.instance, stage.index]

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(close)

    def stage_needs_thread(self) -> bool:
        """Whether a stage waits here for a thread that no other feeder just left."""
        worker = self.worker()
        # Of the event loop's dictionary a copy: this runs in the feeder's thread.
        tasks = {} if worker is None else dict(worker.state.tasks)
        now = time.monotonic()
        with _making:
            left = self._left_for
            for old in [key for key in left if now - left[key] >= LEFT_SECONDS]:
                del left[old]
            for key, task in tasks.items():
                if not isinstance(key, str) or not key.startswith(KEY_PREFIX):
                    continue
                if task.state in ("ready", "constrained") and key not in left:
                    left[key] = now
                    return True
        return False

    async def call(
        self, address: str, operation: str, header: Header, payload: Payload = EMPTY
    ) -> Answer:
        """Call a handler of a worker; in this process without a message."""
        local = _by_address.get(address)
        if local is not None and local.loop is self.loop:
            return await local.handlers[operation](header, payload)
        worker = self.worker()
        if worker is None:
            return LOST
        try:
            answer = await worker.rpc(address).infer_microbatch(
                operation=operation,
                header=pickle.dumps(header),
                payload=payload.packed(),
            )
        except RuntimeError:  # "ConnectionPool is closed": this worker goes
            if worker.status.name != "running":
                return LOST
            raise
        if not isinstance(answer, dict):  # a worker that has no such handler
            return LOST
        if "payload" in answer:
            answer["payload"] = Payload(answer["payload"])
        return answer

    async def _receive(self, operation: str, header: bytes, payload: Any) -> Answer:
        """Run a handler for a call of another process."""
        answer = await self.handlers[operation](pickle.loads(header), Payload(payload))
        if "payload" in answer:
            return {**answer, "payload": answer["payload"].packed()}
        return answer

    # --- at the feeder -----------------------------------------------------------

    def _is_current(self, header: Header) -> InFlight | None:
        in_flight = self.in_flight.get(header.number)
        return in_flight if in_flight and in_flight.attempt == header.attempt else None

    async def _fetch(self, header: Header, payload: Payload) -> Answer:
        in_flight = self._is_current(header)
        if in_flight is None:
            return LOST
        in_flight.taken = header.target
        return {"status": "done", "payload": in_flight.payload}

    async def _outputs(self, header: Header, payload: Payload) -> Answer:
        in_flight = self._is_current(header)
        if in_flight is not None and not in_flight.outputs.done():
            in_flight.outputs.set_result(replace(payload, times=header.times))
        return DONE

    # --- at a stage --------------------------------------------------------------

    def _stage(self, header: Header) -> StageServer | None:
        index = header.target.stage_at(self.address)
        return self.stages.get((header.target.name, index))

    async def _at_stage(self, work: Work, header: Header, payload: Payload) -> Answer:
        """Do a part of a microbatch's work at the stage that is here."""
        stage = self._stage(header)
        if stage is None:
            return LOST
        epoch = header.target.epoch
        return await stage.within_epoch(epoch, work(stage, header, payload))

    async def _offer(self, header: Header, payload: Payload) -> Answer:
        if not header.candidates:
            return await self._at_stage(self._admit, header, payload)
        stage = self._stage(header)
        if stage is None:
            return LOST
        # Passed on; also while the stage here is replaced.
        size = stage.window.size
        async with self.dispatcher.choose(header.candidates, size) as target:
            offered = replace(header, target=target, candidates=())
            try:
                return await self.call(target.route[0], "offer", offered)
            except OSError:
                return LOST

    async def _admit(
        self, stage: StageServer, header: Header, payload: Payload
    ) -> Answer:
        async with stage.admitted():
            answer = await self.call(header.feeder, "fetch", header)
            if answer["status"] != "done":
                return LOST
            return await self._run(stage, header, answer["payload"])

    async def _part(self, header: Header, payload: Payload) -> Answer:
        stage = self._stage(header)
        if stage is not None and stage.serves(header.target.epoch):
            stage.turns.receive(header.turn, payload.open())
        return DONE

    async def _run(
        self, stage: StageServer, header: Header, payload: Payload
    ) -> Answer:
        """Run a microbatch here and pass the result on."""
        if not stage.in_shards:
            result = await stage.run(header, payload)
        else:
            result = await stage.keep(self._lead(stage, header, payload))
        if isinstance(result, Failure):
            return result.answer()
        header = replace(header, times=header.times.plus(result.times))
        following = header.target.route[stage.index + 1 :]
        if following:
            return await self.call(following[0], "forward", header, result)
        return await self.call(header.feeder, "outputs", header, result)

    async def _lead(
        self, stage: StageServer, header: Header, payload: Payload
    ) -> Payload | Failure:
        """Run a microbatch on all shards; return what the first one made of it."""
        header = replace(header, turn=stage.turns.number())
        others = header.target.stages[stage.index][1:]
        calls = asyncio.gather(
            *(stage.call_shard(each, "follow", header, payload) for each in others)
        )
        try:
            result = await stage.run(header, payload)
            answers = await calls
        finally:
            calls.cancel()
        if any(answer["status"] == "lost" for answer in answers):
            raise StageLost
        failures = [result] if isinstance(result, Failure) else []
        failures += [Failure(**a["failure"]) for a in answers if "failure" in a]
        # Where one shard fails the others do, too: it has the cause.
        return next((f for f in failures if not f.of_other), result)

    async def _follow(
        self, stage: StageServer, header: Header, payload: Payload
    ) -> Answer:
        """Run a microbatch in its turn; the values stay here."""
        result = await stage.keep(stage.run(header, payload))
        return result.answer() if isinstance(result, Failure) else DONE


#: The comms of this process by their workers' addresses.
_by_address: weakref.WeakValueDictionary[str, MicrobatchComms] = (
    weakref.WeakValueDictionary()
)
_by_worker: weakref.WeakKeyDictionary[Worker, MicrobatchComms] = (
    weakref.WeakKeyDictionary()
)
_making = threading.Lock()


def comms_of(worker: Worker) -> MicrobatchComms:
    """Return the comms of a worker; made when they are first asked for."""
    with _making:  # a second one would take the handlers of the first
        comms = _by_worker.get(worker)
        if comms is None:
            comms = _by_worker[worker] = MicrobatchComms(worker)
        return comms
