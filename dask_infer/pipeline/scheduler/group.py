"""A group as the coordinator keeps it: its users, its instances and their stages.

Only states and their changes; lives on the scheduler's event loop.

Watchers are informed of another status and of a loss at once, since what they know is
false then. Of more instances they are informed at intervals that grow with the number
of users, so that a large group which forms does not occupy the scheduler.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, ClassVar

from dask_infer.errors import pickled
from dask_infer.pipeline.messages.group_state import (
    GroupState,
    ModelFacts,
    Status,
    Target,
)
from dask_infer.pipeline.messages.stage_spec import StageSpec
from dask_infer.spec import GroupSpec, StageLayers

#: Seconds between two states that watchers are informed of: at least, and for each
#: user, since each may be on a worker that watches. An answer takes 0.2 ms of the
#: scheduler (benchmarks/watchers).
INTERVAL = (0.1, 0.005)
#: The same between two losses.
LOSS_INTERVAL = (0.0, 0.001)


@dataclass(eq=False)
class PlacedStage:
    """One stage, or a shard of it, on one worker."""

    spec: StageSpec
    address: str
    #: The stage's Dask task, once it is submitted.
    future: Any = None
    ready: bool = False
    #: Set where it is cancelled before it was submitted.
    cancelled: bool = False


@dataclass(eq=False)
class Instance:
    """One complete copy of the model over its stages."""

    name: str
    #: First block of each stage, and the end of the last.
    bounds: tuple[int, ...]
    #: Bytes of weights of each slot: a stage, or one of its shards.
    nbytes: tuple[int, ...]
    #: The worker that each slot was planned for.
    planned: tuple[str, ...] = ()
    #: Workers that share each stage; the slots are all shards of all stages, in order.
    shards: int = 1
    #: As of `StageLayers`.
    cuts: bytes = b""
    epoch: int = 0
    placed: dict[int, PlacedStage] = field(default_factory=dict)

    @property
    def stages(self) -> int:
        """How many stages it has."""
        return len(self.bounds) - 1

    @property
    def slots(self) -> range:
        """All of its slots."""
        return range(self.stages * self.shards)

    @property
    def addresses(self) -> list[str]:
        """Workers that hold or will hold a slot, in order."""
        return [self.placed[slot].address for slot in sorted(self.placed)]

    @property
    def missing(self) -> list[int]:
        """Slots that have no worker."""
        return [slot for slot in self.slots if slot not in self.placed]

    def shards_with(self, slot: int) -> list[int]:
        """Return the other shards of a slot's stage."""
        first = slot - slot % self.shards
        return [n for n in range(first, first + self.shards) if n != slot]

    @property
    def layout(self) -> tuple[tuple[int, ...], tuple[int, ...], int, bytes]:
        """What another instance that is cut alike is made of."""
        return self.bounds, self.nbytes, self.shards, self.cuts

    def slot_name(self, slot: int) -> str:
        """Return what messages call a slot."""
        stage, shard = divmod(slot, self.shards)
        return f"stage {stage}" + (f", shard {shard}" if self.shards > 1 else "")

    def state(self) -> Target:
        """Return what feeders must know."""
        where, step = self.addresses, self.shards
        starts = range(0, len(where), step)
        stages = tuple(tuple(where[n : n + step]) for n in starts)
        return Target(self.name, self.epoch, stages, self.ready)

    @property
    def ready(self) -> bool:
        """Whether all stages serve."""
        return not self.missing and all(p.ready for p in self.placed.values())


class Group:
    """All instances of one model on workers of its own, and who uses them."""

    _versions: ClassVar[Iterator[int]] = itertools.count(1)
    _names: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.status: Status = "forming"
        #: Keys of the group requests that Dask keeps, and of the feeders that run.
        self.requests: set[Any] = set()
        self.feeders: set[Any] = set()
        self.instances: list[Instance] = []
        self.facts = ModelFacts()
        #: Rows of a microbatch, once planned; None where feeders find them.
        self.microbatch: int | None = None
        self.error: bytes | None = None
        self.version = self.next_version()
        #: The status that watchers know, and when they were informed last: at all, and
        #: of a loss.
        self._informed_of: Status = self.status
        self._informed, self._informed_lost = -inf, -inf
        #: Whether they are to be informed of a loss.
        self._lost = False
        self._changed = asyncio.Event()
        self._later: asyncio.TimerHandle | None = None
        self._message: bytes | None = None
        #: Workers on which it could not be loaded.
        self.unfit: set[str] = set()
        #: `time.monotonic()` when its last user left; None while it has users.
        self.idle_since: float | None = None
        #: Whether it is released as soon as it has no user.
        self.unloading = False
        #: Seconds of a row in its slowest stage; None until that was seen.
        self.seconds_per_row: float | None = None
        #: What the coordinator does for it now.
        self.tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return (
            f"<Group {self.spec.key} {self.status}, {len(self.instances)} instances, "
            f"{len(self.requests)} requests, {len(self.feeders)} feeders>"
        )

    @classmethod
    def next_version(cls) -> int:
        """Return a number above all that were given out."""
        return next(cls._versions)

    @property
    def ended(self) -> bool:
        """Whether it was refused or released."""
        return self.status in ("refused", "released")

    @property
    def used(self) -> bool:
        """Whether it has users."""
        return bool(self.requests or self.feeders)

    @property
    def idle(self) -> float:
        """Seconds without a user; infinite for one that never had any."""
        return time.monotonic() - (self.idle_since or -inf)

    @property
    def placed(self) -> list[PlacedStage]:
        """The stages of all instances that have a worker."""
        return [stage for each in self.instances for stage in each.placed.values()]

    def is_spare(self, instance: Instance) -> bool:
        """Whether the group can do without this instance."""
        several = len(self.instances) > 1 and instance in self.instances
        return several and self.spec.layout.replicas == "auto"

    def new_instance(
        self,
        bounds: Sequence[int],
        nbytes: Sequence[int],
        shards: int = 1,
        cuts: bytes = b"",
    ) -> Instance:
        """Add an instance that has no workers yet."""
        name = f"{self.spec.key}-{next(self._names)}"
        about = (tuple(bounds), tuple(nbytes))
        instance = Instance(name, *about, shards=shards, cuts=cuts)
        self.instances.append(instance)
        return instance

    def place(self, instance: Instance, slot: int, address: str) -> PlacedStage:
        """Note the worker of a slot, under the instance's epoch."""
        index, shard = divmod(slot, instance.shards)
        start, stop = instance.bounds[index : index + 2]
        shards = shard, instance.shards, instance.cuts
        layers = StageLayers(self.spec.chain, start, stop, index, *shards)
        formed = instance.name, instance.stages, instance.epoch
        spec = StageSpec(self.spec, *formed, layers)
        placed = instance.placed[slot] = PlacedStage(spec, address)
        return placed

    async def watch(self, version: int, timeout: float) -> None:
        """Return once there is a newer version, or after so many seconds."""
        if self.version <= version:
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout)

    def notify(self, lost: bool = False) -> None:
        """Inform all who watch of a change, now or together with later ones.

        `lost` says that an instance does not serve any more.
        """
        if not self.ended:
            ready = any(instance.ready for instance in self.instances)
            self.status = "ready" if ready else "forming"
        self._lost |= lost
        before = self._informed_lost if lost else self._informed
        least, each = LOSS_INTERVAL if lost else INTERVAL
        due = before + max(least, each * (len(self.requests) + len(self.feeders)))
        urgent = self.ended or self.status != self._informed_of
        if urgent or due <= time.monotonic():
            self._inform()
        else:
            self._inform_at(due)

    def _inform_at(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        due += loop.time() - time.monotonic()
        if self._later is None or due < self._later.when():
            if self._later is not None:
                self._later.cancel()
            self._later = loop.call_at(due, self._inform)

    def _inform(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        self._informed_of, self._informed = self.status, time.monotonic()
        if self._lost:
            self._lost, self._informed_lost = False, self._informed
        self.version, self._message = self.next_version(), None
        self._changed.set()
        self._changed = asyncio.Event()

    def message(self) -> bytes:
        """Return the state as watchers get it: packed, once for a version."""
        if self._message is None:
            self._message = self.state().packed()
        return self._message

    def refuse(self, error: BaseException) -> None:
        """End with an error that every user gets."""
        self.status, self.error = "refused", pickled(error)

    def state(self) -> GroupState:
        """Return what feeders must know."""
        return GroupState(
            self.version,
            self.status,
            tuple(each.state() for each in self.instances),
            self.facts,
            self.microbatch,
            self.error,
        )
