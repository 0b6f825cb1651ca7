"""The one owner of groups: a scheduler plugin that places, watches and releases them.

The first group request registers it; it outlives every client and feeder, and
``client.restart()``. All of it runs on the scheduler's event loop. Invariants:

1. A stage is pinned to one worker (``allow_other_workers=True`` ignores resources and
   can break the scheduler's bookkeeping) and its key is used once: Dask counts the
   deaths of workers against keys.
2. All stages and shards of an instance are placed or none, on distinct workers, by
   what is free.
3. After a loss the instance's epoch rises before feeders are notified.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Iterable
from typing import Any, TypeAlias

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_infer.errors import PlacementError, pickled
from dask_infer.pipeline.messages.group_state import GroupState
from dask_infer.pipeline.scheduler.group import Group
from dask_infer.pipeline.scheduler.group_table import GroupTable
from dask_infer.pipeline.scheduler.placer import Placer, grow_slowest, place_first
from dask_infer.pipeline.scheduler.stage_tasks import StageTasks
from dask_infer.pipeline.scheduler.worker_states import is_silent, seconds_per_row
from dask_infer.spec import GroupSpec
from dask_infer.spec.group_spec import COORDINATOR

#: What is answered: a packed `GroupState`, None where it is known; and how many tasks
#: feed the group now.
Answer: TypeAlias = dict[str, Any]

#: Seconds after which a watcher is answered even if nothing changed.
LONG_POLL_SECONDS = 60.0
#: Seconds between two looks at idle groups and silent workers.
POLL_SECONDS = 0.5


class GroupCoordinator(SchedulerPlugin):
    """The groups of a cluster, as workers ask for them and as the cluster changes."""

    name = COORDINATOR
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Add the handlers; awaits nothing, so that no second one is registered.

        Not synchronous: a scheduler awaits what its preloaded plugins start
        (distributed 2026.8.0).
        """
        self.scheduler = scheduler
        self.tasks = StageTasks(scheduler)
        self.table = GroupTable(scheduler, self.tasks)
        self._looking = asyncio.ensure_future(self._look())
        for operation in ("knows", "open", "reserve", "watch", "ready"):
            handler = getattr(self, f"_{operation}")
            scheduler.handlers[f"infer_{operation}"] = handler

    async def close(self) -> None:
        """Release all groups, with the scheduler."""
        self._looking.cancel()
        for group in self.table:
            self.table.release(group, "the scheduler closes")
        await self.tasks.close()

    # --- handlers ----------------------------------------------------------------

    async def _knows(self, key: str) -> bool:
        """Whether the blocks of a group's model were measured already."""
        return key in self.table.chains

    async def _open(
        self, spec: bytes, user: Any, is_request: bool, version: int = -1
    ) -> Answer:
        """Add a user to a group; start to form it where it is not there.

        A state of the `version` that the worker knows is not sent again.
        """
        if not self._runs(user):
            # The thread of a cancelled feeder may still ask, and would never leave.
            gone = PlacementError(f"task {user} was cancelled")
            refused = GroupState(0, "refused", error=pickled(gone))
            return {"state": refused.packed(), "feeders": 0}
        (group,) = self._join([pickle.loads(spec)], user, is_request)
        return _answer(group, version)

    async def _reserve(self, specs: bytes, chains: bytes, user: Any) -> None:
        """Start to form all groups of one request: on workers for all, or for none.

        `chains` has the `ChainFacts` that were measured, by the keys of groups.
        """
        self.table.chains.update(pickle.loads(chains))
        if self._runs(user):
            self._join(pickle.loads(specs), user, is_request=True)

    def _runs(self, user: Any) -> bool:
        task = self.scheduler.tasks.get(user)
        return task is not None and task.state == "processing"

    def _join(
        self, specs: Iterable[GroupSpec], user: Any, is_request: bool
    ) -> list[Group]:
        """Add a user to groups; form together those that are not there."""
        found, placers = [], []
        for spec in specs:
            group = self.table.groups.get(spec.key)
            if group is None or group.ended:
                group = self.table.groups[spec.key] = Group(spec)
                placers.append(Placer(self.table, group))
            (group.requests if is_request else group.feeders).add(user)
            group.idle_since = None
            found.append(group)
        if placers:
            placed = asyncio.ensure_future(place_first(placers))
            # Groups beside each other share what is free: see `_may_grow`.
            grows = len(found) == 1
            for placer in placers:
                self.table.start(placer.group, placer.form(placed, grows))
        return found

    async def _watch(self, key: str, version: int) -> Answer:
        """Return the state of a group once it is newer than `version`."""
        group = self.table.groups.get(key)
        if group is None:
            released = GroupState(Group.next_version(), "released")
            return {"state": released.packed(), "feeders": 0}
        await group.watch(version, LONG_POLL_SECONDS)
        return _answer(group, version)

    async def _ready(self, instance: str, slot: int, epoch: int, facts: bytes) -> None:
        """Note that a stage, or a shard of it, serves."""
        for group in self.table:
            for each in group.instances:
                placed = each.placed.get(slot)
                if each.name != instance or placed is None:
                    continue
                if placed.spec.epoch == epoch:
                    placed.ready = True
                    if slot == 0:
                        group.facts = pickle.loads(facts)
                    self.table.notify(
                        group, f"{placed.spec.layers.name} of {instance} serves"
                    )

    def unload(self, content: str | None) -> None:
        """Release the groups of one model, or all, as soon as they have no user."""
        for group in self.table:
            if content in (None, group.spec.model.key):
                group.unloading = True
                self.table.release_if_idle(group)

    # --- changes of the cluster --------------------------------------------------

    def transition(
        self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any
    ) -> None:
        """Remove users whose tasks ended."""
        gone = finish in ("released", "forgotten", "erred")
        for group in self.table:
            if finish != "processing" and key in group.feeders:
                group.feeders.discard(key)
            elif gone and key in group.requests:
                group.requests.discard(key)
            else:
                continue
            if not group.used and group.idle_since is None:
                group.idle_since = time.monotonic()
                self.table.release_if_idle(group)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Replace the stages that were there."""
        for group in self.table:
            for instance in list(group.instances):
                if worker in instance.addresses:
                    Placer(self.table, group).lose(instance, worker)

    def restart(self, scheduler: Scheduler) -> None:
        """Release all groups: every worker is new."""
        for group in self.table:
            group.requests.clear()
            group.feeders.clear()
            self.table.release(group, "the cluster restarts")

    # --- the passing of time -----------------------------------------------------

    async def _look(self) -> None:
        """Release idle groups, replace stages of silent workers, let groups grow."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for group in self.table:
                self.table.release_if_idle(group)
                self._look_at(group)
            if not any(each.missing for g in self.table for each in g.instances):
                grow_slowest(self.table, list(filter(self._may_grow, self.table)))

    def _may_grow(self, group: Group) -> bool:
        """Whether a group may take free workers now.

        Groups of one job share them by their speed, which has to be seen first.
        """
        auto = group.spec.layout.replicas == "auto"
        if not (auto and group.used and group.status == "ready"):
            return False
        beside = [other for other in self.table if other.requests & group.requests]
        if len(beside) < 2:
            return True
        for other in beside:
            other.seconds_per_row = seconds_per_row(self.scheduler, other)
        return all(other.seconds_per_row is not None for other in beside)

    def _look_at(self, group: Group) -> None:
        stall = group.spec.timeouts.stall
        for instance in list(group.instances):
            for address in instance.addresses:
                if is_silent(self.scheduler, address, stall):
                    Placer(self.table, group).lose(instance, address)
                    break


def _answer(group: Group, version: int) -> Answer:
    known = group.version == version
    state = None if known else group.message()
    return {"state": state, "feeders": len(group.feeders)}
