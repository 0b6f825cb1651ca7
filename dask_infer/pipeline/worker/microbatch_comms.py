"""The calls by which microbatches travel: between the feeders and stages of workers.

One object a worker, on its event loop. A microbatch goes feeder -> stage 0 -> stage 1
-> ... by nested calls over the cluster's own comms::

    feeder    offer to stage 0                without payload: it waits for admission
    (of several instances, the first one's stage 0 offers it to the idlest)
    stage 0   fetch from the feeder           once it is admitted: the payload
    stage k   forward to stage k+1            the values between two stages
    last      outputs to the feeder
              the answers come back along the calls: done, failed or lost

A stage in shards is its first one here; `shard_comms` calls the others.
"""

from __future__ import annotations

import asyncio
import itertools
import pickle
import threading
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeAlias

from distributed import Worker

from dask_infer.pipeline.messages.microbatch import (
    Failure,
    Header,
    Payload,
    StageLost,
    Target,
)
from dask_infer.pipeline.worker.admission import Dispatcher
from dask_infer.pipeline.worker.answers import DONE, LOST, Answer, answered, failed
from dask_infer.pipeline.worker.shards.shard_comms import ShardComms
from dask_infer.pipeline.worker.stage_server import StageServer

Handler: TypeAlias = Callable[[Header, Payload], Coroutine[Any, Any, Answer]]
Work: TypeAlias = Callable[[StageServer, Header, Payload], Coroutine[Any, Any, Answer]]

EMPTY = Payload()


class InFlight:
    """A microbatch at its feeder, until its outputs are there."""

    _numbers: ClassVar[itertools.count[int]] = itertools.count()

    def __init__(
        self,
        payload: Payload,
        rows: int,
        method: str | None = None,
        outputs: bytes | None = None,
    ) -> None:
        self.number = next(self._numbers)
        self.payload, self.rows = payload, rows
        #: As of `Header`.
        self.method, self.columns = method, outputs
        #: How often it was sent in vain.
        self.attempt = 0
        #: The instance that fetched it in this attempt.
        self.taken: Target | None = None
        #: What the last stage sent; of the event loop that sends it.
        self.outputs: asyncio.Future[Payload] = asyncio.Future()


class MicrobatchComms:
    """The stages and feeders of one worker, and the handlers that reach them.

    Parameters
    ----------
    worker
        The Dask worker that gets the handlers.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = weakref.ref(worker)
        self.address: str = worker.address
        self.loop: asyncio.AbstractEventLoop = worker.loop.asyncio_loop  # type: ignore[attr-defined]
        self.stages: dict[tuple[str, int], StageServer] = {}
        #: Microbatches of the feeders here, until their outputs came.
        self.in_flight: dict[int, InFlight] = {}
        self.dispatcher = Dispatcher()
        self.shards = ShardComms(self.stages, self.call, self.worker)
        #: Keys of stage tasks that wait for a thread here; one feeder leaves its own
        #: for each.
        self.thread_requests: set[str] = set()
        self.handlers: dict[str, Handler] = {
            "offer": self._offer,
            "fetch": self._fetch,
            "forward": partial(self._at_stage, self._run),
            "outputs": self._outputs,
            "follow": partial(self._at_stage, self.shards.follow),
        }
        worker.handlers["infer_microbatch"] = self._receive
        worker.handlers["infer_part"] = self.shards.receive
        worker.handlers["infer_request_thread"] = self._request_thread
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

    def takes_thread_request(self) -> bool:
        """Whether the calling feeder is the one that leaves its thread to a stage."""
        try:
            self.thread_requests.pop()
        except KeyError:
            return False
        return True

    async def call(
        self, address: str, operation: str, header: Header, payload: Payload = EMPTY
    ) -> Answer:
        """Call a handler of a worker; in this process without a message."""
        local = _by_address.get(address)
        if local is not None and local.loop is self.loop:
            return await local.handlers[operation](header, payload)
        worker = self.worker()
        if worker is None:
            raise StageLost
        try:
            answer = await worker.rpc(address).infer_microbatch(
                operation=operation,
                header=pickle.dumps(header),
                payload=payload.packed(),
            )
        except RuntimeError:  # "ConnectionPool is closed": this worker goes
            if worker.status.name != "running":
                raise StageLost from None
            raise
        if not isinstance(answer, dict):  # a worker that has no such handler
            raise StageLost
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

    async def _request_thread(self, key: str) -> Answer:
        worker = self.worker()
        task = worker and worker.state.tasks.get(key)
        if task and task.state in ("ready", "constrained"):  # it has no thread yet
            self.thread_requests.add(key)
        return DONE

    # --- at a stage --------------------------------------------------------------

    async def _offer(self, header: Header, payload: Payload) -> Answer:
        stage = self.stages.get((header.target.name, 0))
        if stage is None:
            return LOST
        if header.candidates:
            return await self._dispatch(stage, header)
        return await answered(stage, header, self._admit(stage, header))

    async def _dispatch(self, stage: StageServer, header: Header) -> Answer:
        """Pass an offer on; also while the stage here is replaced."""
        size = stage.window.size
        async with self.dispatcher.choose(header.candidates, size) as target:
            try:
                return await self.call(target.route[0], "offer", header.to(target))
            except (StageLost, OSError):
                return LOST

    async def _admit(self, stage: StageServer, header: Header) -> Answer:
        async with stage.admitted():
            answer = await self.call(header.feeder, "fetch", header)
            if answer["status"] != "done":
                return LOST
            return await self._run(stage, header, answer["payload"])

    async def _at_stage(self, work: Work, header: Header, payload: Payload) -> Answer:
        """Do a part of a microbatch's work at the stage that is here."""
        index = header.target.stage_at(self.address)
        stage = self.stages.get((header.target.name, index))
        if stage is None:
            return LOST
        return await answered(stage, header, work(stage, header, payload))

    async def _run(
        self, stage: StageServer, header: Header, payload: Payload
    ) -> Answer:
        """Run a microbatch here and pass the result on."""
        run = stage.run if stage.exchange is None else partial(self.shards.run, stage)
        result = await run(header, payload)
        if isinstance(result, Failure):
            return failed(result)
        header = replace(header, times=header.times.plus(result.times))
        following = header.target.route[stage.index + 1 :]
        if following:
            return await self.call(following[0], "forward", header, result)
        return await self.call(header.feeder, "outputs", header, result)


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
