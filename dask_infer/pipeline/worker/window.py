"""Places for the microbatches that are inside a group, at the door of its first stage.

Lives on one event loop. Whoever has no place waits outside, with its bytes.
"""

from __future__ import annotations

import asyncio
from types import TracebackType


class Window:
    """At most so many microbatches between the first stage and the feeder's answer.

    Parameters
    ----------
    size
        Microbatches admitted and not yet finished, at most.
    """

    #: Admitted now.
    inside: int = 0
    #: Most that were ever inside.
    peak: int = 0

    def __init__(self, size: int) -> None:
        self.size = size
        self._places = asyncio.Semaphore(size)

    def __repr__(self) -> str:
        return f"<Window {self.inside}/{self.size}>"

    async def __aenter__(self) -> Window:
        await self._places.acquire()
        self.inside += 1
        self.peak = max(self.peak, self.inside)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.inside -= 1
        self._places.release()
