"""Seconds of a piece of work that is run a few times, on a machine that may be busy."""

from __future__ import annotations

import time
from types import TracebackType

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: Runs at most.
RUNS = 7
#: Seconds after which nothing is run again.
TIME_LIMIT = 0.1


class Clock:
    """The fastest of some runs; a context manager around each.

    Parameters
    ----------
    alone
        The calling thread does all of the work. Then its own CPU time stands in for
        runs that were all interrupted: work of 20 ms never gets through undisturbed
        where others want the core.
    """

    #: Runs so far.
    runs: int = 0

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._spent = 0.0
        #: Wall time of runs that nobody interrupted, and CPU time of the others.
        self._whole: list[float] = []
        self._interrupted: list[float] = []

    def __enter__(self) -> Clock:
        self._started = (time.perf_counter(), time.thread_time(), _interruptions())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wall, cpu, interruptions = self._started
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        self.runs += 1
        self._spent += wall
        if self._alone and _interruptions() > interruptions:
            self._interrupted.append(cpu)
        else:
            self._whole.append(wall)

    @property
    def enough(self) -> bool:
        """Whether another run would tell little."""
        return self.runs >= RUNS or self._spent > TIME_LIMIT

    @property
    def seconds(self) -> float:
        """The fastest run that nobody interrupted, else the least CPU time of one."""
        return min(self._whole or self._interrupted)


def _interruptions() -> int:
    """How often the calling thread had to leave its core to others."""
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
