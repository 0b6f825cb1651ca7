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
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from dask.utils import format_bytes

from dask_infer.device.allocator import give_back_freed_blocks
from dask_infer.device.device import Device, use_cpu_threads
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.device.resolve_device import resolve_device
from dask_infer.errors import ModelLoadError
from dask_infer.faults.deadline import DeadlineExceeded, within
from dask_infer.metrics.recorder import add
from dask_infer.model.identity.user_classes import SharedClasses, sharing
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.load_model import load, resident_bytes
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.stage_model import load_part, part_bytes
from dask_infer.replica.measured import observe_load
from dask_infer.replica.models_limit import models_limit, raise_limit
from dask_infer.replica.sizes import Sizes
from dask_infer.replica.worker_place import Place
from dask_infer.spec import ModelSpec, StageLayers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplicaKey:
    """What makes two replicas the same one."""

    content: str
    dtype: str | None
    device: str
    #: How it is compiled.
    compile: tuple[tuple[str, object], ...] | None
    part: StageLayers | None = None


@dataclass(eq=False)
class Replica:
    """One model in this process, loading or loaded."""

    key: ReplicaKey
    spec: ModelSpec
    device: Device
    #: Address of the worker that used it last; several may share this process.
    worker: str
    #: 0 before there is room for it, projected ones while it loads, then measured ones.
    nbytes: int = 0
    #: "retired": out of the cache.
    state: Literal["loading", "ready", "retired"] = "loading"
    #: Set once `state` is "ready".
    model: LoadedModel | None = None
    #: Classes in it that may change while it is idle: it is loaded again then.
    shared: SharedClasses = field(default_factory=SharedClasses)
    leases: int = 0
    #: It is to be closed after its users, or those who load it.
    unloading: bool = False
    #: A stage holds a lease as long as it lives: it may be idle even so.
    serving: bool = False
    #: Rows served so far, and what guards them.
    rows: int = 0
    counting: threading.Lock = field(default_factory=threading.Lock)
    last_used: float = field(default_factory=time.monotonic)
    #: Batch-size policies, shared by all threads.
    sizes: Sizes = field(init=False)

    def __post_init__(self) -> None:
        key = self.key
        owner = (key.content, key.dtype, self.device.kind, key.compile)
        self.sizes = Sizes(self.spec.name, owner)

    def __repr__(self) -> str:
        sizes = ", ".join(self.sizes.describe()) or "no batch yet"
        return (
            f"<Replica {self.spec.name} {format_bytes(self.nbytes)}, "
            f"{self.leases} leases, {self.device}: {sizes}>"
        )

    @property
    def part(self) -> StageLayers | None:
        """The layers that live here; None for the whole model."""
        return self.key.part

    @property
    def loaded(self) -> LoadedModel:
        """The model; only a leased replica may be asked."""
        assert self.model is not None
        return self.model

    def count(self, rows: int) -> None:
        """Add served rows."""
        with self.counting:
            self.rows += rows
        self.last_used = time.monotonic()


class ReplicaCache:
    """Weighted least-recently-used cache of replicas, with leases."""

    def __init__(self) -> None:
        self._replicas: dict[ReplicaKey, Replica] = {}
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        replicas = self.replicas()
        total = format_bytes(sum(r.nbytes for r in replicas))
        leases = sum(r.leases for r in replicas)
        return f"<ReplicaCache {len(replicas)} models {total}, {leases} leases>"

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
        part: StageLayers | None = None,
    ) -> Iterator[Replica]:
        """Hold the replica of `spec`, or a part of it; load it where it is not yet."""
        if device == "auto" and format_of(spec).takes_host():
            device = "cpu"
        where = resolve_device(device)
        key = ReplicaKey(spec.key, dtype, str(where), spec.compile, part)
        replica = self._acquire(key, spec, place, where, timeout)
        if replica.shared.changed():
            self.discard(replica)
            self._release(replica)
            replica = self._acquire(key, spec, place, where, timeout)
        try:
            yield replica
        finally:
            self._release(replica)

    def unload(self, content: str | None = None) -> int:
        """Let go of one model, or all; those in use go when their users are done."""
        with self._changed:
            going = [
                r for r in self._replicas.values() if content in (None, r.key.content)
            ]
            for replica in going:  # one that loads goes with its first users
                replica.unloading = True
            idle = [r for r in going if r.state == "ready" and self._retire(r)]
        _close(idle)
        return len(going)

    def discard(self, replica: Replica) -> None:
        """Forget a replica that may be stuck; the next lease loads a fresh one."""
        with self._changed:
            if self._replicas.get(replica.key) is replica:
                self._retire(replica)

    def _acquire(
        self,
        key: ReplicaKey,
        spec: ModelSpec,
        place: Place,
        device: Device,
        timeout: float | None,
    ) -> Replica:
        wait = self._waiter(spec, place, timeout)
        with self._changed:
            while (known := self._replicas.get(key)) is not None:
                if known.state == "ready":
                    known.leases += 1
                    known.worker = place.worker
                    known.last_used = time.monotonic()
                    return known
                wait("the load of it in another thread")
            replica = Replica(key, spec, device, place.worker, leases=1)
            self._replicas[key] = replica
        try:
            self._make_room(replica, _projected_bytes(replica), place, wait)
            if device.torch_device.type == "cpu":
                place.check_room(spec, replica.nbytes)
            model = self._load(replica, place.cpu_threads, timeout)
        except BaseException:
            with self._changed:
                del self._replicas[key]
                self._changed.notify_all()
            raise
        with self._changed:
            replica.model, replica.nbytes = model, model.nbytes
            replica.state = "ready"
            if replica.unloading:
                self._retire(replica)
            self._changed.notify_all()
        return replica

    def _waiter(
        self, spec: ModelSpec, place: Place, timeout: float | None
    ) -> Callable[[str], None]:
        """Return what waits for another thread; the caller holds the lock."""
        began, logged = time.monotonic(), False

        def wait(awaited: str) -> None:
            nonlocal logged
            if not logged:
                logged = True
                logger.info('model "%s" waits for %s', spec.name, awaited)
            left = None if timeout is None else began + timeout - time.monotonic()
            if left is not None and left <= 0:
                raise ModelLoadError(
                    f'model "{spec.name}" waited {timeout:g} s on worker '
                    f"{place.worker} for {awaited}: raise timeout= or "
                    "infer.replica.memory-limit"
                )
            self._changed.wait(left)

        return wait

    def _load(
        self, replica: Replica, threads: int, timeout: float | None
    ) -> LoadedModel:
        """Load; where memory runs out, once more without the idle replicas."""
        try:
            return _load(replica, threads, timeout)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Out of the except block, whose traceback would hold what was allocated.
        device = replica.device
        with self._changed:
            idle = self._idle(device)
            for other in idle:
                self._retire(other)
        _close(idle)
        device.release_memory()
        try:
            return _load(replica, threads, timeout)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ModelLoadError(
                f'model "{replica.spec.name}" needs {format_bytes(replica.nbytes)}, '
                f"for which memory ran out on {device} of worker {replica.worker}: use "
                'a larger device or fewer workers on it, or pass dtype="bfloat16"'
            ) from error

    def _idle(self, device: Device) -> list[Replica]:
        """Return the replicas on a device that are not in use."""
        return [
            r
            for r in self._replicas.values()
            if r.device is device and r.state == "ready" and not r.leases
        ]

    def _make_room(
        self,
        newcomer: Replica,
        nbytes: int,
        place: Place,
        wait: Callable[[str], None],
    ) -> None:
        """Evict idle replicas until the newcomer fits, or wait for their leases."""
        found = models_limit(newcomer.device, place)
        limit = inf if found is None else found
        if nbytes > limit:
            raise ModelLoadError(
                f'model "{newcomer.spec.name}" needs {format_bytes(nbytes)}, '
                f"more than the {format_bytes(int(limit))} that models may take on "
                f"{raise_limit(newcomer.device, place)}, or pass "
                'dtype="bfloat16"'
            )
        while True:
            with self._changed:
                others = [
                    r
                    for r in self._replicas.values()
                    if r.device is newcomer.device and r.nbytes
                ]
                if sum(r.nbytes for r in others) + nbytes <= limit:
                    newcomer.nbytes = nbytes
                    return
                idle = self._idle(newcomer.device)
                if not idle:
                    names = sorted({f'"{r.spec.name}"' for r in others})
                    wait(f"{', '.join(names)}, in use on {newcomer.device}")
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


def _projected_bytes(replica: Replica) -> int:
    spec, part = replica.spec, replica.part
    try:
        if part is not None:
            return part_bytes(spec, part, replica.key.dtype)
        return resident_bytes(spec, replica.key.dtype)
    except (OSError, ModelLoadError) as error:
        raise ModelLoadError(
            f'the weights of model "{spec.name}" in {spec.weights or spec.path} cannot '
            f"be read: {type(error).__name__}: {error}; check the files on the workers"
        ) from error


def _load(replica: Replica, threads: int, timeout: float | None) -> LoadedModel:
    name, key = replica.spec.name, replica.key

    def work() -> LoadedModel:
        # Sessions of ONNX Runtime keep the number of threads that they start with.
        use_cpu_threads(threads)
        with sharing() as replica.shared:
            if key.part is None:
                return load(replica.spec, device=key.device, dtype=key.dtype)
            part = key.part
            return load_part(replica.spec, part, device=key.device, dtype=key.dtype)

    began = time.perf_counter()
    try:
        model = within(timeout, work, what=f"load of {name}")
    except DeadlineExceeded:
        raise ModelLoadError(
            f'model "{name}" was not loaded within {timeout:g} s on worker '
            f"{replica.worker}: raise timeout=, or look at what its constructor waits "
            "for"
        ) from None
    seconds = time.perf_counter() - began
    if key.part is None:
        kind = replica.device.torch_device.type
        observe_load(replica.spec, key.dtype, kind, model.nbytes, seconds)
    logger.info(
        'model "%s"%s loaded in %.2f s: %s on %s of worker %s, from %s',
        *(name, "" if key.part is None else f", {key.part.name}"),
        *(seconds, format_bytes(model.nbytes), replica.device),
        *(replica.worker, replica.spec.origin),
    )
    add("loads")
    give_back_freed_blocks()
    return model


def _close(replicas: list[Replica]) -> None:
    on_host = False
    for replica in replicas:
        if replica.model is not None:
            replica.model.close()
            replica.model = None
            on_host |= replica.device.torch_device.type == "cpu"
    if on_host:
        give_back_freed_blocks()


#: The one cache of this process.
cache = ReplicaCache()
