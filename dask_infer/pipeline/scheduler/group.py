"""A group as the coordinator keeps it: its users, its instances and their stages.

Lives on the scheduler's event loop. Only states and their changes are here; `Placer`
finds workers, `GroupCoordinator` talks to them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dask_infer.errors import pickled
from dask_infer.pipeline.messages.group_state import (
    Facts,
    GroupState,
    InstanceState,
    Status,
)
from dask_infer.pipeline.messages.stage_order import StageOrder
from dask_infer.plan.schedule import window
from dask_infer.spec import GroupSpec


@dataclass(eq=False)
class Placed:
    """One stage on one worker."""

    order: StageOrder
    address: str
    #: The stage's Dask task.
    future: Any
    ready: bool = False
    #: It is not wanted any more; whoever is about to submit it does not.
    given_up: bool = False


@dataclass(eq=False)
class Instance:
    """One complete copy of the model over its stages."""

    name: str
    #: First block of each stage, and the end of the last.
    bounds: tuple[int, ...]
    #: Bytes of each stage's weights; 0 where nobody knows.
    nbytes: tuple[int, ...]
    #: The worker that each stage was planned for.
    planned: tuple[str, ...] = ()
    epoch: int = 0
    placed: dict[int, Placed] = field(default_factory=dict)

    @property
    def stages(self) -> int:
        """How many stages it has."""
        return len(self.bounds) - 1

    @property
    def addresses(self) -> list[str]:
        """Workers that hold or will hold a stage."""
        return [self.placed[index].address for index in sorted(self.placed)]

    @property
    def missing(self) -> list[int]:
        """Stages that have no worker."""
        return [index for index in range(self.stages) if index not in self.placed]

    @property
    def ready(self) -> bool:
        """Whether all stages serve."""
        return not self.missing and all(p.ready for p in self.placed.values())

    def state(self) -> InstanceState:
        """Return what feeders are told."""
        return InstanceState(self.name, self.epoch, tuple(self.addresses), self.ready)


class Group:
    """All instances of one group, and who uses them."""

    _versions: ClassVar[Iterator[int]] = itertools.count(1)
    _names: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, spec: GroupSpec) -> None:
        self.spec = spec
        self.status: Status = "forming"
        #: Keys of the requests that are alive, and of the feeders that run.
        self.requests: set[Any] = set()
        self.feeders: set[Any] = set()
        self.instances: list[Instance] = []
        self.facts = Facts()
        self.microbatch: int | None = None
        self.error: bytes | None = None
        self.version = self.next_version()
        self.changed = asyncio.Event()
        #: Workers on which it could not be loaded.
        self.unfit: set[str] = set()
        #: Loop time since which nobody uses it.
        self.idle_since: float | None = None
        #: Whether it goes as soon as nobody uses it.
        self.unloading = False
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
    def used(self) -> bool:
        """Whether anybody uses it."""
        return bool(self.requests or self.feeders)

    @property
    def window(self) -> int:
        """Microbatches that an instance admits: twice its stages unless told."""
        told = self.spec.layout.window
        if told != "auto":
            return told
        return window(max((each.stages for each in self.instances), default=1))

    def is_spare(self, instance: Instance) -> bool:
        """Whether the group can do without this instance."""
        several = len(self.instances) > 1 and instance in self.instances
        return several and self.spec.layout.replicas == "auto"

    def is_on(self, workers: set[str]) -> bool:
        """Whether one of these workers holds a stage of it."""
        return any(workers & set(each.addresses) for each in self.instances)

    def new_instance(self, bounds: Sequence[int], nbytes: Sequence[int]) -> Instance:
        """Add an instance that has no workers yet."""
        name = f"{self.spec.key}-{next(self._names)}"
        instance = Instance(name, tuple(bounds), tuple(nbytes))
        self.instances.append(instance)
        return instance

    def order(self, instance: Instance, index: int) -> StageOrder:
        """Return the order for a stage of an instance as it is now."""
        start, stop = instance.bounds[index : index + 2]
        return StageOrder(
            self.spec,
            instance.name,
            index,
            instance.stages,
            instance.epoch,
            start,
            stop,
            self.window,
        )

    def tell(self) -> None:
        """Let everyone who watches know of a change."""
        if self.status in ("forming", "ready"):
            ready = any(instance.ready for instance in self.instances)
            self.status = "ready" if ready else "forming"
        self.version = self.next_version()
        self.changed.set()
        self.changed = asyncio.Event()

    def refuse(self, error: BaseException) -> None:
        """End with an error that every user gets."""
        self.status = "refused"
        self.error = pickled(error)
        self.tell()

    def state(self) -> GroupState:
        """Return what feeders are told."""
        return GroupState(
            self.version,
            self.status,
            tuple(instance.state() for instance in self.instances),
            self.facts,
            self.window,
            self.microbatch,
            len(self.feeders),
            self.error,
        )
