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
import threading
import time
import weakref
from collections import Counter
from itertools import chain
from math import ceil
from typing import Any, TypeAlias

from distributed import Worker

from dask_infer.errors import PartitionError, PlacementError
from dask_infer.pipeline.messages.group_state import GroupState
from dask_infer.pipeline.messages.microbatch import (
    Failure,
    Header,
    Payload,
    StageLost,
    Target,
)
from dask_infer.pipeline.worker.answers import Answer
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
        self.state: GroupState | None = None
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
        self._sending: set[asyncio.Task[Answer]] = set()
        #: Microbatches in flight, by the instance that they are offered to first.
        self._sent: Counter[str] = Counter()

    def __repr__(self) -> str:
        users = f"{len(self.users)} users"
        return f"<GroupClient of {self.spec.key}, {users}, {self.state}>"

    # --- the state ---------------------------------------------------------------

    async def open(
        self, user: Any, *, is_request: bool = False, chain: bytes | None = None
    ) -> GroupState:
        """Ask for the group on behalf of a task, and wait until it serves.

        Parameters
        ----------
        user
            Key of the task.
        is_request
            It uses the group until it is forgotten, not just while it runs.
        chain
            The pickled `ChainFacts`, which the coordinator plans with.

        Raises
        ------
        PlacementError
            If it cannot be placed; what its load raised where that failed.
        """
        self.users.append(user)
        try:
            return await self._open(user, is_request, chain)
        except BaseException:
            await self.close(user)
            raise

    async def close(self, user: Any) -> None:
        """Remove a user; with the last one the coordinator is not watched any more."""
        self.users.remove(user)
        if not self.users and self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _open(
        self, user: Any, is_request: bool = False, chain: bytes | None = None
    ) -> GroupState:
        request = {
            "spec": pickle.dumps(self.spec),
            "user": user,
            "is_request": is_request,
            "worker": self.comms.address,
            "chain": chain,
        }
        state = await self._ask("open", self.state, **request)
        while state.status in ("forming", "released"):
            if state.status == "released":
                state = await self._ask("open", state, **request)
            else:
                state = await self._watched(state)
        self._update(state)
        if state.status == "refused":
            raise _refusal(state)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return state

    async def _ask(
        self, operation: str, known: GroupState | None, **arguments: Any
    ) -> GroupState:
        """Ask the coordinator; return `known` where it is still so."""
        worker = self.comms.worker()
        if worker is None:
            raise StageLost
        ask = getattr(worker.scheduler, f"infer_{operation}")
        version = -1 if known is None else known.version
        answer = await ask(version=version, **arguments)
        if answer is None:
            raise PlacementError(
                "the scheduler has no coordinator of groups: set "
                "distributed.scheduler.pickle to true there"
            )
        self.feeders = answer["feeders"]
        if answer["state"] is None:
            assert known is not None
            return known
        return GroupState.unpacked(answer["state"])

    async def _watched(self, known: GroupState) -> GroupState:
        return await self._ask("watch", known, key=self.spec.key)

    async def _watch(self) -> None:
        while True:
            assert self.state is not None
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
        if self.state is None or state.version > self.state.version:
            self.state = state
            if ready := _ready(state):
                stages = len(ready[0].route)
                self.window = window_size(self.spec.layout.window, stages)
            if (most := self.window * max(1, len(state.instances))) != self._most_calls:
                self._most_calls, self._calls = most, asyncio.Semaphore(most)
            self._changed.set()
            self._changed = asyncio.Event()

    async def _serving(self) -> Targets:
        """Return the instances that serve; where none does, wait for one."""
        while True:
            state = self.state
            assert state is not None
            if state.status == "refused":
                raise _refusal(state)
            if state.status == "ready" and (ready := _ready(state)):
                return ready
            changed = self._changed
            if state.status == "released":
                await self._open(self.users[-1])
            elif self.state is state:
                await changed.wait()

    async def _moved(self, in_flight: InFlight, ready: Targets) -> None:
        """Return when the instance that took a microbatch changed."""
        while not self._has_moved(in_flight, ready):
            await self._changed.wait()

    def _has_moved(self, in_flight: InFlight, ready: Targets) -> bool:
        """Whether the instance that took a microbatch is not what it was.

        Before any took it: whether others serve than those that it was offered to.
        """
        now = () if self.state is None else _ready(self.state)
        return in_flight.taken not in now if in_flight.taken else now != ready

    # --- sending -----------------------------------------------------------------

    async def send(
        self,
        payload: Payload,
        rows: int,
        method: str | None = None,
        outputs: bytes | None = None,
    ) -> Payload:
        """Send a microbatch, again after a loss, until its outputs are here.

        Parameters
        ----------
        method, outputs
            As of `Header`.

        Raises
        ------
        PlacementError
            If the group was lost and cannot be placed again.
        Exception
            What a stage raised.
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
            ready = await self._serving()
            answer = await self._attempt(in_flight, ready)
            if in_flight.outputs.done():
                return in_flight.outputs.result()
            if answer is not None and answer["status"] == "failed":
                raise Failure(**answer["failure"]).exception()
            if lost_since is None or lost_since[0] != ready:
                lost_since, pause = (ready, time.monotonic()), PAUSES[0]
            elif time.monotonic() - lost_since[1] > self.spec.timeouts.stall:
                stages = dict.fromkeys(chain.from_iterable(t.addresses for t in ready))
                raise PartitionError(
                    f'model "{self.spec.model.name}": the scheduler reaches its stages '
                    f"on {', '.join(stages)}, but worker {self.comms.address} does "
                    "not; look at the network between the workers"
                )
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._moved(in_flight, ready), pause)
            pause = min(2 * pause, PAUSES[1])

    async def _attempt(self, in_flight: InFlight, ready: Targets) -> Answer | None:
        """Send once; None where the instance changed or did not answer."""
        candidates = self._candidates(ready)
        first = candidates[0].name
        self._sent[first] += 1
        try:
            async with self._calls:
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
                return await self._answer(in_flight, header, ready)
        finally:
            self._sent[first] -= 1
            if not self._sent[first]:
                del self._sent[first]

    async def _answer(
        self, in_flight: InFlight, header: Header, ready: Targets
    ) -> Answer | None:
        offer = self.comms.call(header.target.route[0], "offer", header)
        sending = asyncio.create_task(offer)
        self._sending.add(sending)
        sending.add_done_callback(self._forget)
        moved = asyncio.create_task(self._moved(in_flight, ready))
        try:
            while True:
                waits: set[asyncio.Future[Any]] = {in_flight.outputs, sending, moved}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if in_flight.outputs.done():
                    return None
                if sending.done():
                    return sending.result()
                if self._has_moved(in_flight, ready):
                    return None
                # It was taken just when others began to serve.
                moved = asyncio.create_task(self._moved(in_flight, ready))
        except (StageLost, OSError):
            return None
        finally:
            moved.cancel()
            # The answer that follows the outputs comes in a moment.
            if not in_flight.outputs.done():
                sending.cancel()
                # From here on the older attempt gets and brings nothing.
                in_flight.attempt, in_flight.taken = in_flight.attempt + 1, None

    def _forget(self, sending: asyncio.Task[Answer]) -> None:
        self._sending.discard(sending)
        if not sending.cancelled():
            sending.exception()  # else asyncio logs it as never retrieved

    def _candidates(self, ready: Targets) -> Targets:
        """Return the instances among which one dispatcher chooses."""
        parts = ceil(len(ready) / DISPATCHED)
        return min(
            (ready[part::parts] for part in range(parts)),
            key=lambda part: (self._sent[part[0].name] / len(part), random.random()),
        )


def _ready(state: GroupState) -> Targets:
    return tuple(
        Target(each.name, each.epoch, each.route, each.followers)
        for each in state.instances
        if each.ready
    )


def _refusal(state: GroupState) -> Exception:
    assert state.error is not None
    error: Exception = pickle.loads(state.error)
    return error


_clients: weakref.WeakKeyDictionary[Worker, dict[str, GroupClient]] = (
    weakref.WeakKeyDictionary()
)
_lock = threading.Lock()


def group_client(worker: Worker, spec: GroupSpec) -> GroupClient:
    """Return the client that all feeders of a worker share for a group."""
    with _lock:
        clients = _clients.setdefault(worker, {})
        if spec.key not in clients:
            clients[spec.key] = GroupClient(comms_of(worker), spec)
        return clients[spec.key]
