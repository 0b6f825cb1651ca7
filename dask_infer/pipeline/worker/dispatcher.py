"""The choice of an instance for each microbatch of a group that has several.

Lives on the event loop of the worker that holds stage 0 of the first instance: one
place that sees the microbatches of all feeders, so that none waits behind another while
an instance is idle. It only chooses; each instance keeps its own window at its door.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence

from dask_infer.pipeline.messages.microbatch import Target


class Dispatcher:
    """Counts the microbatches in each instance, and gives the next one to the idlest.

    Where all windows are full, microbatches wait in the order in which they came, bound
    to no instance: the first that is done takes the next.
    """

    def __init__(self) -> None:
        #: Microbatches in each instance. An epoch has a count of its own: calls to a
        #: worker that is frozen may not end for a long time.
        self.inside: Counter[Target] = Counter()
        self._waiting: deque[tuple[frozenset[Target], asyncio.Future[Target]]] = deque()

    def __repr__(self) -> str:
        return f"<Dispatcher {sum(self.inside.values())}, {len(self._waiting)} waiting>"

    @contextlib.asynccontextmanager
    async def place(
        self, among: Sequence[Target], window: int
    ) -> AsyncIterator[Target]:
        """Hold a place in the instance that has the fewest microbatches inside."""
        target = await self._acquire(among, window)
        try:
            yield target
        finally:
            self._release(target)

    async def _acquire(self, among: Sequence[Target], window: int) -> Target:
        least = min(among, key=self.inside.__getitem__)
        if self.inside[least] < window:
            self.inside[least] += 1
            return least
        waits: asyncio.Future[Target] = asyncio.get_running_loop().create_future()
        request = (frozenset(among), waits)
        self._waiting.append(request)
        try:
            return await waits
        except asyncio.CancelledError:
            if waits.done() and not waits.cancelled():
                self._release(waits.result())
            else:
                self._waiting.remove(request)
            raise

    def _release(self, target: Target) -> None:
        for request in self._waiting:
            among, waits = request
            if target in among and not waits.done():
                self._waiting.remove(request)
                waits.set_result(target)
                return
        self.inside[target] -= 1
        if not self.inside[target]:
            del self.inside[target]
