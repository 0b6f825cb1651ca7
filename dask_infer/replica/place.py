"""A worker as a place for replicas: its address, its memory, its share of the cores."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
import psutil
from dask.system import CPU_COUNT
from dask.utils import format_bytes

from dask_infer import config
from dask_infer.device.threads import share_of_cores
from dask_infer.errors import ModelLoadError
from dask_infer.spec import ModelSpec

#: Seconds after which the threads of the host's workers are counted again.
RECOUNT = 30.0


@dataclass(frozen=True)
class Place:
    """Where a partition task runs."""

    #: Address of the Dask worker; "local" under the schedulers without workers.
    worker: str
    #: Torch threads of one forward on the CPU.
    cpu_threads: int
    #: Bytes of the process that are neither models nor data held by Dask.
    used_bytes: Callable[[], int]
    #: Bytes at which the worker's nanny intervenes; None where nobody watches.
    memory_limit: int | None = None
    #: Bytes at which Dask pauses the worker.
    pause_at: int | None = None

    def replica_limit(self) -> int | None:
        """Most bytes of resident models, or None for no limit."""
        limit = config.get_bytes("replica.memory-limit")
        if limit is None and self.memory_limit:
            return int(0.6 * self.memory_limit)
        return limit

    def check_room(self, spec: ModelSpec, needed: int) -> None:
        """Refuse a model with which Dask would pause this worker for good.

        Dask pauses by resident set size, and the pages of a mapped model count
        (distributed 2026.8.0: a mapped file of 400 MB added 384 MB).
        """
        if not self.pause_at or not self.memory_limit:
            return
        used = self.used_bytes()
        if used + needed <= self.pause_at:
            return
        raise ModelLoadError(
            f'model "{spec.name}" needs {format_bytes(needed)} on worker '
            f"{self.worker}, whose memory limit is {format_bytes(self.memory_limit)}; "
            f"Dask pauses it at {format_bytes(self.pause_at)} and "
            f"{format_bytes(used)} are in use: give the workers a larger "
            'memory_limit, start fewer of them, or pass dtype="bfloat16"'
        )


_places: dict[str, tuple[float, Place]] = {}


def current_place() -> Place:
    """Return the place of the calling thread."""
    worker = current_worker()
    if worker is None:
        return Place("local", _threads(_local_forwards()), _resident_bytes)
    now = time.monotonic()
    known = _places.get(worker.address)
    if known and now - known[0] < RECOUNT:
        return known[1]
    if known:  # others go on with the old count while this thread asks
        _places[worker.address] = (now, known[1])
    place = _place_of(worker)
    _places[worker.address] = (now, place)
    return place


def current_worker() -> Any | None:
    """Return the Dask worker whose task runs in this thread, or None."""
    from distributed import get_worker

    try:
        return get_worker()
    except ValueError:
        return None


def _place_of(worker: Any) -> Place:
    limit = worker.memory_manager.memory_limit
    pause = worker.memory_manager.memory_pause_fraction

    def used_bytes() -> int:
        managed = int(worker.state.nbytes)
        return max(0, int(worker.monitor.get_process_memory()) - managed)

    return Place(
        worker=worker.address,
        cpu_threads=_threads(_forwards_on_host(worker)),
        used_bytes=used_bytes,
        memory_limit=limit,
        pause_at=int(limit * pause) if limit and pause else None,
    )


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _threads(forwards: int) -> int:
    configured = config.get("replica.cpu-threads")
    if configured != "auto":
        return int(configured)
    return share_of_cores(CPU_COUNT, forwards)


def _local_forwards() -> int:
    """Count forwards at once under the schedulers that run in this process alone."""
    if threading.current_thread() is threading.main_thread():
        return 1
    return int(dask.config.get("num_workers", None) or CPU_COUNT)


def _forwards_on_host(worker: Any) -> int:
    """Threads of all workers on this worker's host."""
    from distributed.comm.addressing import get_address_host
    from distributed.utils import sync

    async def ask() -> dict[str, int]:
        return await worker.scheduler.ncores()  # type: ignore[no-any-return]

    here = get_address_host(worker.address)
    counts = sync(worker.loop, ask, callback_timeout=30)
    return sum(n for w, n in counts.items() if get_address_host(w) == here)
