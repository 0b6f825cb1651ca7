"""A group as the feeders of one worker see it: its state, and the sending.

One for each worker and group, on the worker's event loop. It asks the coordinator by a
long poll, so it knows of a loss as soon as the coordinator does: it gives up all that
was sent to the older epoch and sends it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import random
import time
from collections import Counter
from itertools import chain
from math import ceil
from typing import Any, TypeAlias

from distributed import Worker

from dask_infer.errors import PartitionError, PlacementError
from dask_infer.pipeline.messages.group_state import GroupState, Target
from dask_infer.pipeline.messages.microbatch import (
    DONE,
    LOST,
    Answer,
    Failure,
    Header,
    Payload,
    StageLost,
)
from dask_infer.pipeline.worker.microbatch_comms import (
    InFlight,
    MicrobatchComms,
    comms_of,
)
from dask_infer.plan.window import window_size
from dask_infer.replica.sizes import Sizes
from dask_infer.spec import GroupSpec

logger = logging.getLogger(__name__)

#: Most instances among which one worker chooses: it handles two more messages for each
#: of their microbatches.
DISPATCHED = 16
#: Seconds before a microbatch that was lost is sent again, at first and at most.
PAUSES = (0.02, 1.0)

Targets: TypeAlias = "tuple[Target, ...]"


class GroupClient:
    """The users of one group on one worker, and what they send."""

    def __init__(self, comms: MicrobatchComms, spec: GroupSpec) -> None:
        self.comms, self.spec = comms, spec
        self.state = GroupState(-1, "released")
        #: Tasks of all workers that feed the group.
        self.feeders = 0
        #: Microbatches that each instance admits.
        self.window = 1
        #: Keys of the tasks that use it now.
        self.users: list[Any] = []
        #: Batch sizes that the feeders learned.
        self.sizes = Sizes(spec.model.name, ("group", spec.key))
        self._changed = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        #: Limits the calls: more than are admitted fill the pool of connections.
        self._most_calls, self._calls = 1, asyncio.Semaphore()
        #: Calls that offer microbatches, until they are answered.
        self._offers: dict[asyncio.Task[Answer], InFlight] = {}
        #: Microbatches in flight, by the instance that they are offered to first.
        self._sent: Counter[str] = Counter()

    def __repr__(self) -> str:
        users = f"{len(self.users)} users"
        return f"<GroupClient of {self.spec.key}, {users}, {self.state}>"

    # --- the state ---------------------------------------------------------------

    async def open(self, user: Any, *, is_request: bool = False) -> GroupState:
        """Ask for the group on behalf of a task, and wait until it serves.

        A request uses the group until its key is forgotten, not just while it runs.

        Raises
        ------
        PlacementError
            If it cannot be placed; what its load raised where that failed.
        """
        self.users.append(user)
        try:
            return await self._open(user, is_request)
        except BaseException:
            await self.close(user)
            raise

    async def close(self, user: Any) -> None:
        """Remove a user; with the last one the coordinator is not watched any more."""
        self.users.remove(user)
        if not self.users and self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _open(self, user: Any, is_request: bool = False) -> GroupState:
        spec = pickle.dumps(self.spec)
        request = {"spec": spec, "user": user, "is_request": is_request}
        state = await self._ask("open", self.state, **request)
        while state.status == "forming":
            state = await self._watched(state)
            if state.status == "released":
                state = await self._ask("open", state, **request)
        self._update(state)
        if state.error is not None:
            raise pickle.loads(state.error)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return state

    async def _ask(
        self, operation: str, known: GroupState, **arguments: Any
    ) -> GroupState:
        """Ask the coordinator; return `known` where it is still so."""
        worker = self.comms.worker()
        if worker is None:
            raise StageLost
        ask = getattr(worker.scheduler, f"infer_{operation}")
        answer = await ask(version=known.version, **arguments)
        if answer is None:
            raise PlacementError(
                "the scheduler has no coordinator of groups: set "
                "distributed.scheduler.pickle to true there"
            )
        self.feeders = answer["feeders"]
        packed = answer["state"]
        return known if packed is None else GroupState.unpacked(packed)

    async def _watched(self, known: GroupState) -> GroupState:
        return await self._ask("watch", known, key=self.spec.key)

    async def _watch(self) -> None:
        while True:
            try:
                state = await self._watched(self.state)
            except OSError:  # a worker without a scheduler ends by itself
                await asyncio.sleep(1)
                continue
            self._update(state)
            # Not `state`: another user may have heard of the next group already.
            if self.state.status in ("released", "refused"):
                self._watching = None
                return

    def _update(self, state: GroupState) -> None:
        if state.version <= self.state.version:
            return
        self.state, serving = state, state.serving
        if serving:
            stages = len(serving[0].stages)
            self.window = window_size(self.spec.layout.window, stages)
        if (most := self.window * max(1, len(state.instances))) != self._most_calls:
            self._most_calls, self._calls = most, asyncio.Semaphore(most)
        for offer, in_flight in self._offers.items():
            if in_flight.has_moved(serving):
                # At once: a stage may ask for it before the call has ended.
                in_flight.withdraw()
                offer.cancel()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _serving(self) -> Targets:
        """Return the instances that serve; where none does, wait for one."""
        while True:
            if self.state.error is not None:
                raise pickle.loads(self.state.error)
            if serving := self.state.serving:
                return serving
            if self.state.status == "released":
                await self._open(self.users[-1])
            else:
                await self._changed.wait()

    # --- sending -----------------------------------------------------------------

    async def send(
        self,
        payload: Payload,
        rows: int,
        method: str | None = None,
        outputs: bytes | None = None,
    ) -> Payload:
        """Send a microbatch, again after a loss, until its outputs are here.

        Raises what a stage raised, and what `open` does.
        """
        in_flight = InFlight(payload, rows, method, outputs)
        self.comms.in_flight[in_flight.number] = in_flight
        try:
            return await self._send(in_flight)
        finally:
            del self.comms.in_flight[in_flight.number]

    async def _send(self, in_flight: InFlight) -> Payload:
        lost_since: tuple[Targets, float] | None = None
        pause = PAUSES[0]
        while True:
            serving = await self._serving()
            answer = await self._attempt(in_flight, serving)
            if in_flight.outputs.done():
                return in_flight.outputs.result()
            if answer["status"] == "failed":
                raise Failure(**answer["failure"]).exception()
            if lost_since is None or lost_since[0] != serving:
                lost_since, pause = (serving, time.monotonic()), PAUSES[0]
            elif time.monotonic() - lost_since[1] > self.spec.timeouts.stall:
                shards = chain.from_iterable(target.stages for target in serving)
                stages = dict.fromkeys(chain.from_iterable(shards))
                raise PartitionError(
                    f'model "{self.spec.model.name}": the scheduler reaches its stages '
                    f"on {', '.join(stages)}, but worker {self.comms.address} does "
                    "not; look at the network between the workers"
                )
            if self.state.serving == serving:
                with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), pause)
            pause = min(2 * pause, PAUSES[1])

    async def _attempt(self, in_flight: InFlight, serving: Targets) -> Answer:
        """Send once; lost where the instance changed or did not answer."""
        candidates = self._candidates(serving)
        first = candidates[0].name
        self._sent[first] += 1
        try:
            async with self._calls:
                if self.state.serving != serving:
                    return LOST  # they changed while it waited
                header = Header(
                    candidates[0],
                    self.comms.address,
                    in_flight.number,
                    in_flight.attempt,
                    in_flight.rows,
                    in_flight.method,
                    in_flight.columns,
                    candidates if len(candidates) > 1 else (),
                )
                in_flight.offered = serving
                return await self._offer(in_flight, header)
        finally:
            self._sent[first] -= 1
            if not self._sent[first]:
                del self._sent[first]

    async def _offer(self, in_flight: InFlight, header: Header) -> Answer:
        """Wait for the outputs, or for the answer; an update may cancel the call."""
        call = self.comms.call(header.target.route[0], "offer", header)
        offer = asyncio.create_task(call)
        self._offers[offer] = in_flight
        offer.add_done_callback(self._forget)
        waits: set[asyncio.Future[Any]] = {in_flight.outputs, offer}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if in_flight.outputs.done():
                return DONE
            return LOST if offer.cancelled() else offer.result()
        except OSError:
            return LOST
        finally:
            # The answer that follows the outputs comes in a moment.
            if not in_flight.outputs.done():
                offer.cancel()
                in_flight.withdraw()

    def _forget(self, offer: asyncio.Task[Answer]) -> None:
        del self._offers[offer]
        if not offer.cancelled():
            offer.exception()  # else asyncio logs it as never retrieved

    def _candidates(self, serving: Targets) -> Targets:
        """Return the instances among which one dispatcher chooses."""
        parts = ceil(len(serving) / DISPATCHED)
        return min(
            (serving[part::parts] for part in range(parts)),
            key=lambda part: (self._sent[part[0].name] / len(part), random.random()),
        )


def group_client(worker: Worker, spec: GroupSpec) -> GroupClient:
    """Return the client that all feeders of a worker share for a group."""
    comms = comms_of(worker)
    if spec.key not in comms.clients:
        comms.clients.setdefault(spec.key, GroupClient(comms, spec))
    client: GroupClient = comms.clients[spec.key]
    return client
