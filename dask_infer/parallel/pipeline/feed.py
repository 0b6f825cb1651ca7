"""A group as the feeders of one worker see it: who serves, and the sending.

One a worker and group while anybody there feeds it; lives on the worker's event loop.
The ledger is asked by a long poll, so a loss is known here once it is known there: all
that was sent to the older epoch is given up at once and sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dask_infer.errors import PartitionError, PlacementError
from dask_infer.parallel.pipeline.microbatch import Failure, Load, Lost, Way
from dask_infer.parallel.pipeline.state import GroupState, InstanceState
from dask_infer.parallel.pipeline.switchboard import Answer, Parcel, Switchboard
from dask_infer.spec import GroupSpec

logger = logging.getLogger(__name__)

#: Seconds before a way that was lost is tried again, at first and at most.
PAUSES = (0.02, 1.0)


@dataclass(frozen=True)
class Call:
    """What is asked of the model with every microbatch of a feeder."""

    method: str | None = None
    #: Fields of the output that become columns; None for all.
    wanted: tuple[Any, ...] | None = None


class Feed:
    """The way from one worker into one group."""

    def __init__(self, board: Switchboard, spec: GroupSpec) -> None:
        self.board, self.spec = board, spec
        self.state: GroupState | None = None
        #: Keys of the tasks that use it now.
        self.users: list[Any] = []
        self._changed = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._places: dict[str, asyncio.Semaphore] = {}
        self._answers: set[asyncio.Task[Answer]] = set()
        #: Microbatches on their way, by instance.
        self._sent: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<Feed of {self.spec.key}, {len(self.users)} users, {self.state}>"

    async def open(
        self, user: Any, *, ticket: bool = False, measured: bytes | None = None
    ) -> GroupState:
        """Ask for the group on behalf of a task, and wait until it serves.

        Parameters
        ----------
        user
            Key of the task.
        ticket
            It uses the group until it is forgotten, not just while it runs.
        measured
            What the model's layers weigh, for the ledger's plan; a ticket tells it.

        Raises
        ------
        PlacementError
            If it cannot be placed; what its load raised where that failed.
        """
        self.users.append(user)
        try:
            return await self._opened(user, ticket, measured)
        except BaseException:
            await self.close(user)
            raise

    async def close(self, user: Any) -> None:
        """Leave; with the last user the ledger is not watched any more."""
        self.users.remove(user)
        if not self.users and self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _opened(
        self, user: Any, ticket: bool = False, measured: bytes | None = None
    ) -> GroupState:
        asked = {
            "spec": pickle.dumps(self.spec),
            "user": user,
            "ticket": ticket,
            "worker": self.board.address,
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
        worker = self.board.worker()
        if worker is None:
            raise Lost
        ask = getattr(worker.scheduler, f"infer_{operation}")
        answer = await ask(**arguments)
        if answer is None:
            raise PlacementError(
                "the scheduler keeps no ledger of groups; distributed.scheduler.pickle "
                "must be true there"
            )
        return GroupState.from_message(answer)

    async def _watched(self, version: int) -> GroupState:
        return await self._ask("watch", group=self.spec.key, version=version)

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
            for name in self._places.keys() - known:
                del self._places[name]
            self._changed.set()
            self._changed = asyncio.Event()

    # --- sending -----------------------------------------------------------------

    async def send(self, parcel: Parcel, rows: int, call: Call) -> Load:
        """Send a microbatch until its outputs are here.

        Raises
        ------
        PlacementError
            If the group was lost and cannot be placed again.
        Exception
            What a stage raised.
        """
        self.board.parcels[parcel.number] = parcel
        try:
            return await self._sent_through(parcel, rows, call)
        finally:
            del self.board.parcels[parcel.number]

    async def _sent_through(self, parcel: Parcel, rows: int, call: Call) -> Load:
        lost_since: tuple[InstanceState, float] | None = None
        pause = PAUSES[0]
        while True:
            instance = await self._serving()
            answer = await self._attempt(parcel, rows, call, instance)
            if parcel.outputs.done():
                return parcel.outputs.result()
            if answer is not None and answer["status"] == "failed":
                raise Failure(**answer["failure"]).exception()
            if lost_since is None or lost_since[0] != instance:
                lost_since, pause = (instance, time.monotonic()), PAUSES[0]
            elif time.monotonic() - lost_since[1] > self.spec.patience.stall:
                raise PartitionError(
                    f'model "{self.spec.model.name}": its stages on '
                    f"{', '.join(instance.route)} are there for the scheduler, but "
                    f"worker {self.board.address} cannot reach them; look at the "
                    "network between the workers"
                )
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._moved(instance), pause)
            pause = min(2 * pause, PAUSES[1])

    async def _attempt(
        self, parcel: Parcel, rows: int, call: Call, instance: InstanceState
    ) -> Answer | None:
        """Send once; None where the instance moved or nobody answered."""
        self._sent[instance.name] += 1
        try:
            # More calls than places only fill the pool of connections.
            async with self._place(instance.name):
                return await self._sending(parcel, rows, call, instance)
        finally:
            self._sent[instance.name] -= 1
            if not self._sent[instance.name]:
                del self._sent[instance.name]

    async def _sending(
        self, parcel: Parcel, rows: int, call: Call, instance: InstanceState
    ) -> Answer | None:
        parcel.attempt += 1
        way = Way(
            group=instance.name,
            epoch=instance.epoch,
            route=instance.route,
            feeder=self.board.address,
            number=parcel.number,
            attempt=parcel.attempt,
            rows=rows,
            method=call.method,
            wanted=call.wanted,
        )
        sending = asyncio.create_task(self.board.send(way))
        moved = asyncio.create_task(self._moved(instance))
        waits: set[asyncio.Future[Any]] = {parcel.outputs, sending, moved}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return self._answer(parcel, sending)
        except OSError:
            return None
        finally:
            moved.cancel()
            if not sending.done():
                self._leave(sending, parcel.outputs.done())

    def _answer(self, parcel: Parcel, sending: asyncio.Task[Answer]) -> Answer | None:
        if parcel.outputs.done() or not sending.done():
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
            sending.exception()  # told by another way, or not of interest

    def _place(self, name: str) -> asyncio.Semaphore:
        assert self.state is not None
        places = self._places.get(name)
        if places is None:
            places = self._places[name] = asyncio.Semaphore(self.state.window)
        return places

    async def _serving(self) -> InstanceState:
        """Return an instance that serves; where none does, wait for one."""
        while True:
            state = self.state
            assert state is not None
            if state.status == "refused":
                raise _refusal(state)
            ready = [each for each in state.instances if each.ready]
            if state.status == "ready" and ready:
                return min(ready, key=lambda each: self._sent[each.name])
            changed = self._changed
            if state.status == "released":
                await self._opened(self.users[-1])
            elif self.state is state:
                await changed.wait()

    async def _moved(self, instance: InstanceState) -> None:
        """Return when the instance is no longer what it was."""
        while True:
            changed, state = self._changed, self.state
            if state is None or instance not in state.instances:
                return
            await changed.wait()


def _refusal(state: GroupState) -> Exception:
    assert state.error is not None
    error: Exception = pickle.loads(state.error)
    return error
