"""A worker as a place for replicas: its address, its memory, its share of the cores."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dask
import psutil
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from distributed import get_worker

from dask_infer import config
from dask_infer.device.allocator import give_back_freed_blocks
from dask_infer.errors import ModelLoadError
from dask_infer.spec import ModelSpec

logger = logging.getLogger(__name__)

#: Seconds after which the threads of the host's workers are counted again.
RECOUNT = 30.0

#: Seconds that the scheduler may take to count them.
PATIENCE = 10.0


@dataclass(frozen=True)
class Place:
    """Where a partition task runs."""

    #: Address of the Dask worker; "local" under the schedulers without workers.
    worker: str
    #: Torch threads of one forward on the CPU.
    cpu_threads: int
    #: Bytes of the process that are neither models nor data held by Dask.
    used_bytes: Callable[[], int]
    #: Bytes at which the worker's nanny intervenes; None without a limit.
    memory_limit: int | None = None
    #: Bytes at which Dask pauses the worker.
    pause_at: int | None = None

    def replica_limit(self) -> int | None:
        """Most bytes of resident models, or None for no limit."""
        limit = config.get_bytes("replica.memory-limit")
        if limit is None and self.memory_limit:
            return int(0.6 * self.memory_limit)
        return limit

    def free_bytes(self) -> int | None:
        """Bytes that this process may still take; None without a limit."""
        if not self.memory_limit:
            return None
        return max(0, self.memory_limit - _resident_bytes())

    def check_room(self, spec: ModelSpec, needed: int) -> None:
        """Refuse a model with which Dask would pause this worker for good.

        Dask pauses by resident set size, and the pages of a mapped model count
        (distributed 2026.8.0: a mapped file of 400 MB added 384 MB).
        """
        if not self.pause_at or not self.memory_limit:
            return
        used = self.used_bytes()
        if used + needed > self.pause_at:  # part of it may be freed blocks
            give_back_freed_blocks()
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


_places: weakref.WeakKeyDictionary[Any, tuple[float, Place]] = (
    weakref.WeakKeyDictionary()
)


def current_place() -> Place:
    """Return the place of the calling thread."""
    worker = current_worker()
    if worker is None:
        return Place("local", _threads(_local_forwards()), _resident_bytes)
    now = time.monotonic()
    known = _places.get(worker)
    if known and now - known[0] < RECOUNT:
        return known[1]
    if _on_loop_of(worker):  # to ask the scheduler here would wait for itself
        return known[1] if known else _place_of(worker, worker.state.nthreads)
    if known:  # others go on with the old count while this thread asks
        _places[worker] = (now, known[1])
    try:
        place = _place_of(worker, _forwards_on_host(worker))
    except (OSError, TimeoutError, asyncio.TimeoutError, RuntimeError) as error:
        logger.info("the scheduler did not count the host's threads: %r", error)
        place = known[1] if known else _place_of(worker, worker.state.nthreads)
    _places[worker] = (now, place)
    return place


def current_worker() -> Any | None:
    """Return the Dask worker whose task runs in this thread, or None."""
    try:
        return get_worker()
    except ValueError:
        return None


def _on_loop_of(worker: Any) -> bool:
    """Whether the calling thread runs the worker's event loop."""
    try:
        return asyncio.get_running_loop() is worker.loop.asyncio_loop
    except RuntimeError:
        return False


def _place_of(worker: Any, forwards: int) -> Place:
    limit = worker.memory_manager.memory_limit
    pause = worker.memory_manager.memory_pause_fraction
    # A place outlives its worker in `_places` if it keeps it alive.
    here = weakref.ref(worker)

    def used_bytes() -> int:
        worker = here()
        managed = 0 if worker is None else int(worker.state.nbytes)
        return max(0, _resident_bytes() - managed)

    return Place(
        worker=worker.address,
        cpu_threads=_threads(forwards),
        used_bytes=used_bytes,
        memory_limit=limit,
        pause_at=int(limit * pause) if limit and pause else None,
    )


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _threads(forwards: int) -> int:
    """Torch threads of one forward: neither idle cores nor more threads than cores."""
    configured = config.get("replica.cpu-threads")
    if configured != "auto":
        return int(configured)
    return max(1, CPU_COUNT // max(1, forwards))


def _local_forwards() -> int:
    """Count forwards at once under the schedulers without workers."""
    # A child of scheduler="processes" runs each task in its main thread.
    child = multiprocessing.parent_process() is not None
    if not child and threading.current_thread() is threading.main_thread():
        return 1
    return int(dask.config.get("num_workers", None) or CPU_COUNT)


def cores_of_process() -> int:
    """Cores that all threads of this process may take together."""
    cores = current_place().cpu_threads * partitions_at_once()
    return max(1, min(CPU_COUNT, cores))


def partitions_at_once() -> int:
    """Partitions that run in this process at a time."""
    worker = current_worker()
    if worker is not None:
        return int(worker.state.nthreads)
    child = multiprocessing.parent_process() is not None
    return 1 if child else _local_forwards()


def _forwards_on_host(worker: Any) -> int:
    """Threads of all workers on this worker's host."""
    from distributed.comm.addressing import get_address_host
    from distributed.utils import sync

    async def ask() -> dict[str, int]:
        return await worker.scheduler.ncores()  # type: ignore[no-any-return]

    here = get_address_host(worker.address)
    counts = sync(worker.loop, ask, callback_timeout=PATIENCE)
    return sum(n for w, n in counts.items() if get_address_host(w) == here)
