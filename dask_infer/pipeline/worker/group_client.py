"""A group as the feeders of one worker see it: who serves, and the sending.

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
from dataclasses import dataclass
from itertools import chain
from math import ceil
from typing import Any, TypeAlias

from dask_infer.errors import PartitionError, PlacementError
from dask_infer.pipeline.messages.group_state import GroupState
from dask_infer.pipeline.messages.microbatch import (
    Failure,
    Header,
    Lost,
    Payload,
    Target,
)
from dask_infer.pipeline.worker.microbatch_comms import (
    Answer,
    InFlight,
    MicrobatchComms,
)
from dask_infer.spec import GroupSpec

logger = logging.getLogger(__name__)

#: Most instances among which one worker chooses: it handles two more messages for each
#: of their microbatches.
DISPATCHED = 16
#: Seconds before a microbatch that was lost is tried again, at first and at most.
PAUSES = (0.02, 1.0)

Targets: TypeAlias = "tuple[Target, ...]"


@dataclass(frozen=True)
class Call:
    """What is asked of the model with every microbatch of a feeder."""

    method: str | None = None
    #: The columns, pickled, that the output becomes; None for all of it.
    outputs: bytes | None = None


class GroupClient:
    """The connection from one worker into one group."""

    def __init__(self, comms: MicrobatchComms, spec: GroupSpec) -> None:
        self.comms, self.spec = comms, spec
        self.state: GroupState | None = None
        #: Keys of the tasks that use it now.
        self.users: list[Any] = []
        self._changed = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._places: dict[tuple[str, ...], asyncio.Semaphore] = {}
        self._answers: set[asyncio.Task[Answer]] = set()
        #: Microbatches on their way, by the instance that they are offered to first.
        self._sent: Counter[str] = Counter()

    def __repr__(self) -> str:
        return (
            f"<GroupClient of {self.spec.key}, {len(self.users)} users, {self.state}>"
        )

    async def open(
        self, user: Any, *, is_request: bool = False, measured: bytes | None = None
    ) -> GroupState:
        """Ask for the group on behalf of a task, and wait until it serves.

        Parameters
        ----------
        user
            Key of the task.
        is_request
            It uses the group until it is forgotten, not just while it runs.
        measured
            What the model's layers weigh, for the coordinator's plan.

        Raises
        ------
        PlacementError
            If it cannot be placed; what its load raised where that failed.
        """
        self.users.append(user)
        try:
            return await self._opened(user, is_request, measured)
        except BaseException:
            await self.close(user)
            raise

    async def close(self, user: Any) -> None:
        """Leave; with the last user the coordinator is not watched any more."""
        self.users.remove(user)
        if not self.users and self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _opened(
        self, user: Any, is_request: bool = False, measured: bytes | None = None
    ) -> GroupState:
        asked = {
            "spec": pickle.dumps(self.spec),
            "user": user,
            "is_request": is_request,
            "worker": self.comms.address,
            "measured": measured,
        }
        state = await self._ask("open", **asked)
        while state.status in ("forming", "released"):
            if state.status == "released":
                state = await self._ask("open", **asked)
            else:
                state = await self._watched(state.version)
        self._update(state)
        if state.status == "refused":
            raise _refusal(state)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        return state

    async def _ask(self, operation: str, **arguments: Any) -> GroupState:
        worker = self.comms.worker()
        if worker is None:
            raise Lost
        ask = getattr(worker.scheduler, f"infer_{operation}")
        answer = await ask(**arguments)
        if answer is None:
            raise PlacementError(
                "the scheduler has no coordinator of groups: set "
                "distributed.scheduler.pickle to true there"
            )
        return GroupState.from_message(answer)

    async def _watched(self, version: int) -> GroupState:
        return await self._ask("watch", key=self.spec.key, version=version)

    async def _watch(self) -> None:
        while True:
            assert self.state is not None
            try:
                state = await self._watched(self.state.version)
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
            known = {instance.name for instance in state.instances}
            for names in list(self._places):
                if not known.issuperset(names):
                    del self._places[names]
            self._changed.set()
            self._changed = asyncio.Event()

    # --- sending -----------------------------------------------------------------

    async def send(self, in_flight: InFlight, rows: int, call: Call) -> Payload:
        """Send a microbatch until its outputs are here.

        Raises
        ------
        PlacementError
            If the group was lost and cannot be placed again.
        Exception
            What a stage raised.
        """
        self.comms.all_in_flight[in_flight.number] = in_flight
        try:
            return await self._sent_through(in_flight, rows, call)
        finally:
            del self.comms.all_in_flight[in_flight.number]

    async def _sent_through(
        self, in_flight: InFlight, rows: int, call: Call
    ) -> Payload:
        lost_since: tuple[Targets, float] | None = None
        pause = PAUSES[0]
        while True:
            ready = await self._serving()
            answer = await self._attempt(in_flight, rows, call, ready)
            if in_flight.outputs.done():
                return in_flight.outputs.result()
            if answer is not None and answer["status"] == "failed":
                raise Failure(**answer["failure"]).exception()
            if lost_since is None or lost_since[0] != ready:
                lost_since, pause = (ready, time.monotonic()), PAUSES[0]
            elif time.monotonic() - lost_since[1] > self.spec.patience.stall:
                stages = dict.fromkeys(chain.from_iterable(t.route for t in ready))
                raise PartitionError(
                    f'model "{self.spec.model.name}": its stages on '
                    f"{', '.join(stages)} are there for the scheduler, but "
                    f"worker {self.comms.address} cannot reach them; look at the "
                    "network between the workers"
                )
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._moved(in_flight, ready), pause)
            pause = min(2 * pause, PAUSES[1])

    async def _attempt(
        self, in_flight: InFlight, rows: int, call: Call, ready: Targets
    ) -> Answer | None:
        """Send once; None where the instance moved or nobody answered."""
        among = self._among(ready)
        first = among[0].name
        self._sent[first] += 1
        try:
            # More calls than places only fill the pool of connections.
            async with self._place(among):
                return await self._sending(in_flight, rows, call, ready, among)
        finally:
            self._sent[first] -= 1
            if not self._sent[first]:
                del self._sent[first]

    async def _sending(
        self, in_flight: InFlight, rows: int, call: Call, ready: Targets, among: Targets
    ) -> Answer | None:
        in_flight.attempt, in_flight.taken = in_flight.attempt + 1, None
        header = Header(
            group=among[0].name,
            epoch=among[0].epoch,
            route=among[0].route,
            among=among if len(among) > 1 else (),
            feeder=self.comms.address,
            number=in_flight.number,
            attempt=in_flight.attempt,
            rows=rows,
            method=call.method,
            outputs=call.outputs,
        )
        sending = asyncio.create_task(self.comms.send(header))
        moved = asyncio.create_task(self._moved(in_flight, ready))
        waits: set[asyncio.Future[Any]] = {in_flight.outputs, sending, moved}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return self._answer(in_flight, sending)
        except OSError:
            return None
        finally:
            moved.cancel()
            if not sending.done():
                self._leave(sending, in_flight.outputs.done())

    def _answer(
        self, in_flight: InFlight, sending: asyncio.Task[Answer]
    ) -> Answer | None:
        if in_flight.outputs.done() or not sending.done():
            return None
        try:
            return sending.result()
        except Lost:
            return None

    def _leave(self, sending: asyncio.Task[Answer], answered: bool) -> None:
        """Let the answer that follows the outputs come; give up any other call."""
        self._answers.add(sending)
        sending.add_done_callback(self._forget)
        if not answered:
            sending.cancel()

    def _forget(self, sending: asyncio.Task[Answer]) -> None:
        self._answers.discard(sending)
        if not sending.cancelled():
            sending.exception()  # told elsewhere, or not of interest

    def _among(self, ready: Targets) -> Targets:
        """Return the instances among which one dispatcher chooses."""
        parts = ceil(len(ready) / DISPATCHED)
        return min(
            (ready[part::parts] for part in range(parts)),
            key=lambda part: (self._sent[part[0].name] / len(part), random.random()),
        )

    def _place(self, among: Targets) -> asyncio.Semaphore:
        assert self.state is not None
        names = tuple(target.name for target in among)
        places = self._places.get(names)
        if places is None:
            size = self.state.window * len(names)
            places = self._places[names] = asyncio.Semaphore(size)
        return places

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
                await self._opened(self.users[-1])
            elif self.state is state:
                await changed.wait()

    async def _moved(self, in_flight: InFlight, ready: Targets) -> None:
        """Return when the instance that took a microbatch is no longer what it was.

        Before any did: when there are others to offer it to than those it was sent to.
        """
        while True:
            changed = self._changed
            now = () if self.state is None else _ready(self.state)
            if in_flight.taken not in now if in_flight.taken else now != ready:
                return
            await changed.wait()


def _ready(state: GroupState) -> Targets:
    return tuple(
        Target(each.name, each.epoch, each.route)
        for each in state.instances
        if each.ready
    )


def _refusal(state: GroupState) -> Exception:
    assert state.error is not None
    error: Exception = pickle.loads(state.error)
    return error
