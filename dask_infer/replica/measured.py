"""What jobs took on this host: seconds of a row and of a load, for the next job's plan.

Times are those of a thread that has its cores to itself, as far as that can be known:
what a crowded host adds depends on how many run, and a plan adds it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask.system import CPU_COUNT

from dask_infer.metrics.sums import Sums
from dask_infer.replica.remembered import recall, remember
from dask_infer.spec import Job, ModelSpec

#: Seconds between two writes of a job's times.
INTERVAL = 1.0
#: Bytes of a load that shows the rate of a host; smaller ones show fixed costs.
RATED = 16 * 2**20


def rows_key(name: str, kind: str) -> str:
    """Key of the seconds of a row on a kind of device; `name` is `Job.rate_key`."""
    return f"rows/{name}/{kind}"


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
    """Sums over the latest partitions of one job in this process."""

    rows: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    partitions: int = 0
    written: float = 0.0


_times: dict[str, _Times] = {}
_lock = threading.Lock()


def observe_partition(
    job: Job, sums: Sums, cpu: float, forwards: int, kind: str
) -> None:
    """Learn from a partition that was predicted in this process.

    Parameters
    ----------
    sums
        What its thread counted.
    cpu
        CPU seconds of the thread meanwhile.
    forwards
        Threads of the host that may run partitions at once.
    kind
        Kind of the device.
    """
    rows = sums.count("rows")
    outside = sums.seconds.get("read", 0.0) + sums.seconds.get("load", 0.0)
    wall = sum(sums.seconds.values()) - outside
    if not rows or wall <= 0:
        return
    # A thread that waited for a core took longer; one that sleeps did not need one.
    alone = min(1.0, max(cpu / wall, 1 / max(1.0, forwards / CPU_COUNT)))
    forward = sums.seconds.get("forward", 0.0)
    other = sum(sums.seconds.get(each, 0.0) for each in ("read", "encode", "decode"))
    other += sums.seconds.get("other", 0.0) + sums.seconds.get("transfer", 0.0)
    name = rows_key(job.rate_key, kind)
    with _lock:
        times = _times.setdefault(name, _Times())
        times.partitions += 1
        if times.partitions == 2:  # the first one also warmed up
            times.rows, times.seconds = 0.0, {}
        # The latest partitions count most.
        times.rows = times.rows / 2 + rows
        for each, seconds in (("forward", forward), ("prepare", other)):
            before = times.seconds.get(each, 0.0)
            times.seconds[each] = before / 2 + seconds * alone
        now = time.monotonic()
        first_ones = times.partitions & (times.partitions - 1) == 0  # 1, 2, 4, 8, ...
        if not first_ones and now - times.written < INTERVAL:
            return
        times.written = now
        state: Mapping[str, Any] = {
            each: seconds / times.rows for each, seconds in times.seconds.items()
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
