"""The replicas resident in this process: loaded once, leased, evicted by age.

One cache a process, shared by all worker threads. Invariants:

1. At most one thread loads a given replica; the others wait for its outcome.
2. A replica that is leased is never closed.
3. Resident and loading bytes of a device stay below the limit: who would exceed it
   first evicts idle replicas, least recently used first, then waits for leases.
4. A failed load leaves nothing behind, so the next caller tries again.

The lock is never held while a model loads, runs or closes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from dask.utils import format_bytes

from dask_infer.batch.size import BatchSize
from dask_infer.device.allocator import give_back_freed_blocks
from dask_infer.device.device import Device, resolve_device
from dask_infer.errors import ModelLoadError
from dask_infer.fault.deadline import DeadlineExceeded, within
from dask_infer.model.load import LoadedModel, load, resident_bytes
from dask_infer.replica.place import Place
from dask_infer.spec import ModelSpec


@dataclass(frozen=True)
class ReplicaKey:
    """What makes two replicas the same one."""

    content: str
    dtype: str | None
    device: str
    compiled: bool


@dataclass(eq=False)
class Replica:
    """One model in this process, loading or loaded."""

    key: ReplicaKey
    spec: ModelSpec
    device: Device
    #: Address of the worker that used it last; several may share this process.
    worker: str
    #: Projected bytes while it loads, measured ones after.
    nbytes: int
    #: "waiting" for room, "loading", "ready", or "retired": out of the cache.
    state: Literal["waiting", "loading", "ready", "retired"] = "waiting"
    #: Set once `state` is "ready".
    model: LoadedModel | None = None
    leases: int = 0
    #: Rows served so far.
    rows: int = 0
    last_used: float = field(default_factory=time.monotonic)
    #: Batch-size policies, one for each input signature; shared by all threads.
    sizes: dict[Any, BatchSize] = field(default_factory=dict)
    #: Whether a batch has ever been too large for the device.
    out_of_memory: bool = False

    @property
    def loaded(self) -> LoadedModel:
        """The model; only a leased replica may be asked."""
        assert self.model is not None
        return self.model

    def count(self, rows: int) -> None:
        """Add served rows."""
        with _count_lock:
            self.rows += rows
            self.last_used = time.monotonic()

    def batch_size(self, signature: Any, bytes_per_row: float) -> BatchSize:
        """Return the policy for batches of this signature, shared by all threads."""
        with _count_lock:
            policy = self.sizes.get(signature)
            if policy is None:
                policy = self.sizes[signature] = BatchSize()
                policy.start(bytes_per_row, free_bytes=self.device.free_bytes())
            return policy

    def first_out_of_memory(self) -> bool:
        """Whether this is the first time that this replica ran out of memory."""
        with _count_lock:
            first, self.out_of_memory = not self.out_of_memory, True
            return first


#: Guards the counters of all replicas; held for moments only.
_count_lock = threading.Lock()


class ReplicaCache:
    """Weighted least-recently-used cache of replicas, with leases."""

    def __init__(self) -> None:
        self._replicas: dict[ReplicaKey, Replica] = {}
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        replicas = self.replicas()
        total = sum(r.nbytes for r in replicas)
        leases = sum(r.leases for r in replicas)
        return (
            f"<ReplicaCache {len(replicas)} models {format_bytes(total)}, "
            f"{leases} leases>"
        )

    def replicas(self) -> list[Replica]:
        """Return the loaded replicas, in the order of their loading."""
        with self._changed:
            return [r for r in self._replicas.values() if r.state == "ready"]

    @contextlib.contextmanager
    def lease(
        self,
        spec: ModelSpec,
        place: Place,
        *,
        device: str = "auto",
        dtype: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[Replica]:
        """Hold the replica of `spec`, loading it where nobody has yet."""
        replica = self._acquire(spec, place, resolve_device(device), dtype, timeout)
        try:
            yield replica
        finally:
            self._release(replica)

    def unload(self, content: str | None = None) -> int:
        """Let go of one model, or all; those in use go when their users are done."""
        with self._changed:
            going = [
                r
                for r in self._replicas.values()
                if r.state == "ready" and content in (None, r.key.content)
            ]
            idle = [r for r in going if self._retire(r)]
        _close(idle)
        return len(going)

    def discard(self, replica: Replica) -> None:
        """Forget a replica that may be stuck; the next lease loads a fresh one."""
        with self._changed:
            if self._replicas.get(replica.key) is replica:
                self._retire(replica)

    def _acquire(
        self,
        spec: ModelSpec,
        place: Place,
        device: Device,
        dtype: str | None,
        timeout: float | None,
    ) -> Replica:
        key = ReplicaKey(spec.key, dtype, str(device), spec.compile is not None)
        with self._changed:
            while (known := self._replicas.get(key)) is not None:
                if known.state == "ready":
                    known.leases += 1
                    known.worker = place.worker
                    known.last_used = time.monotonic()
                    return known
                self._changed.wait()
            needed = resident_bytes(spec, dtype)
            replica = Replica(key, spec, device, place.worker, needed, leases=1)
            self._replicas[key] = replica
        try:
            self._make_room(replica, place)
            if device.torch_device.type == "cpu":
                place.check_room(spec, needed)
            model = _load(replica, dtype, timeout)
        except BaseException:
            with self._changed:
                del self._replicas[key]
                self._changed.notify_all()
            raise
        with self._changed:
            replica.model, replica.nbytes = model, model.nbytes
            replica.state = "ready"
            self._changed.notify_all()
        return replica

    def _make_room(self, newcomer: Replica, place: Place) -> None:
        """Evict idle replicas until the newcomer fits, or wait for their leases."""
        limit = place.replica_limit()
        if limit is None:
            newcomer.state = "loading"
            return
        if newcomer.nbytes > limit:
            raise ModelLoadError(
                f'model "{newcomer.spec.name}" needs {format_bytes(newcomer.nbytes)}, '
                f"more than the {format_bytes(limit)} that models may take on worker "
                f"{place.worker}: raise infer.replica.memory-limit or the worker's "
                'memory_limit, or pass dtype="bfloat16"'
            )
        while True:
            with self._changed:
                others = [
                    r
                    for r in self._replicas.values()
                    if r.key.device == newcomer.key.device
                    and r.state in ("loading", "ready")
                ]
                if sum(r.nbytes for r in others) + newcomer.nbytes <= limit:
                    newcomer.state = "loading"
                    return
                idle = [r for r in others if r.state == "ready" and not r.leases]
                if not idle:
                    self._changed.wait()
                    continue
                oldest = min(idle, key=lambda r: r.last_used)
                self._retire(oldest)
            _close([oldest])

    def _release(self, replica: Replica) -> None:
        with self._changed:
            replica.leases -= 1
            replica.last_used = time.monotonic()
            done = replica.state == "retired" and not replica.leases
            self._changed.notify_all()
        if done:
            _close([replica])

    def _retire(self, replica: Replica) -> bool:
        """Take a replica out of the cache; return whether it can be closed now."""
        replica.state = "retired"
        self._replicas.pop(replica.key, None)
        self._changed.notify_all()
        return replica.leases == 0


def _load(replica: Replica, dtype: str | None, timeout: float | None) -> LoadedModel:
    name = replica.spec.name
    try:
        model = within(
            timeout,
            lambda: load(replica.spec, device=str(replica.device), dtype=dtype),
            what=f"load of {name}",
        )
    except DeadlineExceeded:
        raise ModelLoadError(
            f'model "{name}" was not loaded within {timeout:g} s on worker '
            f"{replica.worker}: raise timeout=, or look at what its constructor waits "
            "for"
        ) from None
    give_back_freed_blocks()
    return model


def _close(replicas: list[Replica]) -> None:
    for replica in replicas:
        if replica.model is not None:
            replica.model.close()
            replica.model = None


#: The one cache of this process.
cache = ReplicaCache()
