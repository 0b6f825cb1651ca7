"""What jobs took on this host: seconds of a row and of a load, for the next job's plan.

Times are those of a thread that has its cores to itself, as far as that can be known:
what a crowded host adds depends on how many run, and a plan adds it again.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from operator import sub
from typing import Any, NamedTuple

from dask.system import CPU_COUNT

from dask_infer.metrics.sums import Sums
from dask_infer.replica.remembered import recall, remember
from dask_infer.spec import Job, ModelSpec

#: Partitions of a job that a process observes at first, and seconds from each to the
#: next one from then on: observing takes 15 us and a file (benchmarks/seeing).
FIRST, INTERVAL = 8, 1.0
#: Bytes of a load that shows the rate of a host; smaller ones show fixed costs.
RATED = 16 * 2**20


def rows_key(name: str, kind: str) -> str:
    """Key of the seconds of a row on a kind of device; `name` is `Job.rate_key`."""
    return f"rows/{name}/{kind}"


def sharded(kind: str, shards: int) -> str:
    """Kind of device for the times of rows in so many shards, exchanges and all."""
    return kind if shards == 1 else f"{kind}/{shards} shards"


def load_key(model: str, dtype: str | None, kind: str) -> str:
    """Key of the load of a model, by its content key."""
    return f"load/{model}/{dtype}/{kind}"


def rate_key(kind: str) -> str:
    """Key of the load that was last on a kind of device, whatever the model."""
    return f"load-rate/{kind}"


def chain_key(chain: str, kind: str) -> str:
    """Key of the timed blocks of a chain, by its content key."""
    return f"chain/{chain}/{kind}"


@dataclass
class _Times:
    """Sums over the latest partitions of one job that were observed in this process."""

    #: Rows, and seconds by what they were spent on.
    sums: dict[str, float] = field(default_factory=dict)
    partitions: int = 0
    #: `time.monotonic()` of the last one.
    observed: float = 0.0


_times: dict[str, _Times] = {}
_lock = threading.Lock()


class ThreadTimes(NamedTuple):
    """Seconds of the calling thread since some moment."""

    wall: float
    cpu: float
    #: Seconds in which it was ready to run and had no core (Linux); else 0.
    waited: float

    @classmethod
    def now(cls) -> ThreadTimes:
        """Return the times of the calling thread."""
        return cls(time.perf_counter(), time.thread_time(), _waited())

    def since(self, before: ThreadTimes) -> ThreadTimes:
        """Return what has passed."""
        return ThreadTimes(*map(sub, self, before))

    @property
    def running(self) -> float:
        """Seconds in which it had a core, or waited for something else than one."""
        return max(self.wall - self.waited, self.cpu)

    @property
    def alone(self) -> float:
        """Part of the time that it would have taken with a core to itself."""
        return self.running / self.wall if self.wall > 0 else 1.0


class ForwardTimes(NamedTuple):
    """What forwards in other processes took, each as if it had a core to itself."""

    seconds: float = 0.0
    #: Of their threads.
    cpu: float = 0.0

    def plus(self, other: ForwardTimes) -> ForwardTimes:
        """Return the times of both."""
        return ForwardTimes(self.seconds + other.seconds, self.cpu + other.cpu)


NO_FORWARD = ForwardTimes()


def _waited() -> float:
    # As a file of Python it took three times as long, 15 us a partition.
    try:
        counters = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return 0.0
    try:
        return int(os.read(counters, 64).split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
    finally:
        os.close(counters)


def is_observed(job: Job, kind: str) -> bool:
    """Whether there is something to learn from a partition that begins now."""
    times = _times.get(rows_key(job.rate_key, kind))
    if times is None or times.partitions < FIRST:
        return True
    return time.monotonic() - times.observed >= INTERVAL


def observe_partition(
    job: Job,
    sums: Sums,
    spent: ThreadTimes,
    kind: str,
    elsewhere: ForwardTimes = NO_FORWARD,
) -> None:
    """Learn from a partition that was predicted in this process, or by a group.

    Its thread counted `sums` and took the times `spent` for all but reading and
    loading. It waited for the forwards of a group, which took those of `elsewhere`.
    """
    rows = sums.count("rows")
    if not rows or spent.wall <= 0:
        return
    alone = {k: spent.alone * seconds for k, seconds in sums.seconds.items()}
    outside = ("load", "wait", "forward", "read")
    working = sum(seconds for k, seconds in alone.items() if k not in outside)
    forward = alone.get("forward", 0.0) + elsewhere.seconds
    cpu = spent.cpu + elsewhere.cpu
    learned = {
        "rows": rows,
        "forward": forward,
        "prepare": working + alone.get("read", 0.0),
        "cpu": cpu,
        "running": max(cpu, forward + working),
    }
    name = rows_key(job.rate_key, kind)
    with _lock:
        times = _times.setdefault(name, _Times())
        times.partitions += 1
        if times.partitions == 2:  # the first one also warmed up
            times.sums = {}
        # The latest partitions count most.
        for each, amount in learned.items():
            learned[each] = times.sums.get(each, 0.0) / 2 + amount
        times.sums, times.observed = learned, time.monotonic()
    state = {
        "forward": learned["forward"] / learned["rows"],
        "prepare": learned["prepare"] / learned["rows"],
        "cores": learned["cpu"] / learned["running"],
    }
    remember(name, state)


def observe_load(
    spec: ModelSpec, dtype: str | None, kind: str, nbytes: int, seconds: float
) -> None:
    """Learn from the load of a whole model."""
    state = {"bytes": nbytes, "seconds": seconds}
    remember(load_key(spec.key, dtype, kind), state)
    if nbytes >= RATED:
        remember(rate_key(kind), state)


def recall_each(keys: list[str]) -> dict[str, Any]:
    """Return what this host knows of each key, and its cores under ``"cores"``."""
    known = {key: state for key in keys if (state := recall(key)) is not None}
    return {**known, "cores": CPU_COUNT}
