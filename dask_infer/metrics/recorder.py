"""Ambient counters: code deep down says what it does, and passes no object for that.

Used as::

    with recording("tcp://10.0.0.1:1234", Label("Linear-1a2b3c4d", None, "5e6f7a8b")):
        with meter("encode"):
            ...
        add("rows", 100)

Where nothing is recorded, `meter` and `add` do nothing. A recorder belongs to one
thread, whose time it divides: inside a meter that activity goes on, an inner meter
interrupts it, and outside all of them it is "other". So the seconds of all activities
add up to the time for which the recorder is open.

A batch passes eight ends of meters: they are written for speed (benchmarks/seeing).
"""

from __future__ import annotations

import functools
import threading
from contextvars import ContextVar
from time import perf_counter
from typing import Any, TypeAlias

from dask_infer.metrics.sums import Label, Sums

#: An activity, when it began, its seconds before that, and what goes on after it: an
#: activity, and what goes on after that.
Lap: TypeAlias = tuple[str, float, float, Any]


class Recorder:
    """Counters of one writer: a partition, the thread of a stage.

    It records the thread that enters it, once. Only that thread writes, any thread may
    read, and there is no lock:

    1. A meter takes the time, writes the seconds that the ended activity has in all,
       never an increment, then the next lap.
    2. `sums` takes the time, then the lap, then the seconds: a lap that ends meanwhile
       is seen whole or for as long as it had gone on, never twice.
    3. A lap may begin after `sums` took the time, or have ended before it by a meter
       that has not written yet: no lap is negative, and what was once read never falls.

    Parameters
    ----------
    worker
        Address of the worker that it belongs to, or "local"; several may share a
        process.
    label
        What the thread works for.
    activity
        What the thread does outside all meters.
    """

    __slots__ = (
        *("_outer", "_read", "_token", "counts", "ended", "label", "lap", "levels"),
        *("seconds", "worker"),
    )

    def __init__(self, worker: str, label: Label, activity: str = "other") -> None:
        self.worker = worker
        self.label = label
        self.counts: dict[str, float] = {}
        self.levels: dict[str, float] = {}
        #: By activity, without the lap that is being timed.
        self.seconds: dict[str, float] = {}
        self.lap: Lap = (activity, perf_counter(), 0.0, None)
        #: Its thread writes no more; the last lap is among the seconds.
        self.ended = False
        self._read: dict[str, float] = {}

    def __repr__(self) -> str:
        doing = "ended" if self.ended else self.lap[0]
        return f"<Recorder of {self.label} on {self.worker}, {doing}>"

    def __enter__(self) -> Recorder:
        self._outer = _own.recorder
        self._token = _context.set(self)
        _own.recorder = self
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        _own.recorder = self._outer
        _context.reset(self._token)
        activity, began, before, _ = self.lap
        self.seconds[activity] = before + perf_counter() - began
        self.ended = True

    def add(self, name: str, amount: float = 1) -> None:
        """Count; other threads than the recorder's do so under names of their own."""
        counts = self.counts
        counts[name] = counts.get(name, 0) + amount

    def sums(self) -> Sums:
        """Return all numbers as they are now; called by any thread."""
        now = perf_counter()
        ended = self.ended
        activity, began, before, _ = self.lap
        seconds = self.seconds.copy()
        if not ended:
            running = before + max(0.0, now - began)
            seconds[activity] = max(seconds.get(activity, 0.0), running)
        for name, once in self._read.items():
            seconds[name] = max(seconds.get(name, 0.0), once)
        self._read = seconds
        return Sums(self.counts.copy(), seconds, self.levels.copy())


class _Own(threading.local):
    """What belongs to one thread."""

    #: Its recorder. On the class, so that it is found fast where there is none.
    recorder: Recorder | None = None

    def __init__(self) -> None:
        #: Starts of the meters in a thread that has none.
        self.began: list[float] = []


_own = _Own()
#: The recorder of whatever runs in this context, in threads beside the recorder's.
_context: ContextVar[Recorder | None] = ContextVar("dask_infer_recorder", default=None)


class Meter:
    """Time of the calling thread goes to `activity` meanwhile."""

    __slots__ = ("activity",)

    def __init__(self, activity: str) -> None:
        self.activity = activity

    def __enter__(self) -> None:
        recorder = _own.recorder
        if recorder is None:
            _begin_beside()
            return
        now = perf_counter()
        ended, began, before, outer = recorder.lap
        seconds = recorder.seconds
        seconds[ended] = before + now - began
        activity = self.activity
        recorder.lap = (activity, now, seconds.get(activity, 0.0), (ended, outer))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        recorder = _own.recorder
        if recorder is None:
            _end_beside(self.activity)
            return
        now = perf_counter()
        ended, began, before, (activity, outer) = recorder.lap
        seconds = recorder.seconds
        seconds[ended] = before + now - began
        recorder.lap = (activity, now, seconds.get(activity, 0.0), outer)


@functools.lru_cache(maxsize=64)
def meter(activity: str) -> Meter:
    """Return the meter of an activity, to be entered by any thread at any depth.

    In a thread beside the recorder's own that has the recorder in its context, time is
    counted as ``<activity>_beside``: it passes while the recorder's thread does
    something else.
    """
    return Meter(activity)


def add(name: str, amount: float = 1) -> None:
    """Count in the thread of a recorder; nothing where there is none."""
    recorder = _own.recorder
    if recorder is not None:
        counts = recorder.counts
        counts[name] = counts.get(name, 0) + amount


def recorded() -> Sums | None:
    """Return what the recorder of the calling thread has so far; None without one."""
    recorder = _own.recorder
    return None if recorder is None else recorder.sums()


def set_level(name: str, value: float) -> None:
    """Say what is so now, in the thread of a recorder; nothing where there is none."""
    recorder = _own.recorder
    if recorder is not None:
        recorder.levels[name] = value


def _begin_beside() -> None:
    if _context.get() is not None:
        _own.began.append(perf_counter())


def _end_beside(activity: str) -> None:
    recorder = _context.get()
    if recorder is not None:
        recorder.add(f"{activity}_beside", perf_counter() - _own.began.pop())
