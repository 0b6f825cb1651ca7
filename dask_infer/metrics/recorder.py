"""Ambient counters: code deep down says what it does, and passes no object for that::

    with recording("tcp://10.0.0.1:1234", Label("Linear-1a2b3c4d", None, "5e6f7a8b")):
        with meter("encode"):
            ...
        add("rows", 100)

Where nothing is recorded, `meter` and `add` do nothing. A recorder belongs to one
thread, whose time it divides: inside a meter that activity goes on, an inner meter
interrupts it, and outside all of them it is "other". So the seconds of all activities
add up to the time for which the recorder is open.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from dask_infer.metrics.sums import Label, Sums


class Recorder:
    """Counters of one writer: a partition, the thread of a stage.

    Only its own thread writes, any thread may read, and nobody locks. `switch` writes
    the seconds that an activity has in all, never an increment. `sums` takes the time
    first, then the lap, then the seconds: a lap that ends meanwhile is seen whole or
    for as long as it had gone on, never twice, so no number ever falls.
    """

    __slots__ = ("_counts", "_lap", "_seconds", "label", "levels", "thread", "worker")

    def __init__(self, worker: str, label: Label, activity: str) -> None:
        self.worker = worker
        self.label = label
        self.levels: dict[str, float] = {}
        #: The thread whose time is divided.
        self.thread = threading.get_ident()
        self._counts: dict[str, float] = {}
        self._seconds: dict[str, float] = {}
        #: The activity, when it began, and its seconds before that.
        self._lap = (activity, perf_counter(), 0.0)

    def switch(self, activity: str) -> str:
        """Begin an activity; return the one that ends with it."""
        now = perf_counter()
        ended, began, before = self._lap
        seconds = self._seconds
        seconds[ended] = before + now - began
        self._lap = (activity, now, seconds.get(activity, 0.0))
        return ended

    def add(self, name: str, amount: float = 1) -> None:
        """Count."""
        counts = self._counts
        counts[name] = counts.get(name, 0) + amount

    def spent(self, activity: str, seconds: float) -> None:
        """Add time that passed before the recorder was there."""
        self._seconds[activity] = self._seconds.get(activity, 0.0) + seconds

    def sums(self) -> Sums:
        """Return all numbers as they are now; called by any thread."""
        now = perf_counter()
        activity, began, before = self._lap
        seconds = self._seconds.copy()
        running = before + now - began
        seconds[activity] = max(seconds.get(activity, 0.0), running)
        return Sums(self._counts.copy(), seconds, self.levels.copy())


#: The recorder of whatever runs in this context.
current: ContextVar[Recorder | None] = ContextVar("dask_infer_recorder", default=None)


class meter:
    """Time of the calling thread goes to `activity` meanwhile.

    In a thread beside the recorder's own, which has the recorder in its context, time
    is counted as ``<activity>_beside``: it passes while the recorder's thread does
    something else.
    """

    __slots__ = ("_activity", "_before", "_began", "_recorder")

    def __init__(self, activity: str) -> None:
        self._activity = activity

    def __enter__(self) -> None:
        self._recorder = recorder = current.get()
        if recorder is None:
            return
        if recorder.thread == threading.get_ident():
            self._before: str | None = recorder.switch(self._activity)
        else:
            self._before, self._began = None, perf_counter()

    def __exit__(self, *error: Any) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        if self._before is not None:
            recorder.switch(self._before)
        else:
            recorder.add(f"{self._activity}_beside", perf_counter() - self._began)


def add(name: str, amount: float = 1) -> None:
    """Count in the thread of a recorder; nothing where there is none."""
    recorder = current.get()
    if recorder is not None:
        recorder.add(name, amount)
