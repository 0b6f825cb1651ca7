"""Admission of microbatches: at most a window in each instance, to the idlest first.

Lives on the event loop of the workers that hold the first stages. A microbatch that
waits has not been transferred yet. `plan/window.py` says how many are admitted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence

from dask_infer.pipeline.messages.group_state import Target


class Window:
    """Limits the microbatches in flight of one instance to `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        #: Admitted now, and most that ever were.
        self.inside = self.peak = 0
        self._places = asyncio.Semaphore(size)

    def __repr__(self) -> str:
        return f"<Window {self.inside}/{self.size}>"

    @contextlib.asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        async with self._places:
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            try:
                yield
            finally:
                self.inside -= 1


class Dispatcher:
    """Chooses the instance of each microbatch of a group that has several.

    The worker of the first one's stage 0 sees the microbatches of all feeders, so none
    waits while an instance is idle. Where all windows are full, microbatches wait in
    the order in which they came, for whichever instance is done first. It only
    chooses: each instance has its own `Window`.
    """

    def __init__(self) -> None:
        #: Microbatches in each instance. An epoch has a count of its own: calls to a
        #: worker that is frozen may not end for a long time.
        self.inside: Counter[Target] = Counter()
        self._waiting: deque[tuple[frozenset[Target], asyncio.Future[Target]]] = deque()

    def __repr__(self) -> str:
        return f"<Dispatcher {sum(self.inside.values())}, {len(self._waiting)} waiting>"

    @contextlib.asynccontextmanager
    async def choose(
        self, candidates: Sequence[Target], window: int
    ) -> AsyncIterator[Target]:
        """Hold a place in the instance that has the fewest microbatches inside."""
        target = await self._acquire(candidates, window)
        try:
            yield target
        finally:
            self._release(target)

    async def _acquire(self, candidates: Sequence[Target], window: int) -> Target:
        least = min(candidates, key=self.inside.__getitem__)
        if self.inside[least] < window:
            self.inside[least] += 1
            return least
        chosen: asyncio.Future[Target] = asyncio.get_running_loop().create_future()
        waits = (frozenset(candidates), chosen)
        self._waiting.append(waits)
        try:
            return await chosen
        except asyncio.CancelledError:
            if chosen.done() and not chosen.cancelled():
                self._release(chosen.result())
            else:
                self._waiting.remove(waits)
            raise

    def _release(self, target: Target) -> None:
        for waits in self._waiting:
            candidates, chosen = waits
            if target in candidates and not chosen.done():
                self._waiting.remove(waits)
                chosen.set_result(target)
                return
        self.inside[target] -= 1
        if not self.inside[target]:
            del self.inside[target]
