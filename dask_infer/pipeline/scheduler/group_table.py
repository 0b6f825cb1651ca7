"""All groups of a cluster, and what happens to their stages and users.

Lives on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

from distributed import Scheduler

from dask_infer.errors import InferError
from dask_infer.pipeline.scheduler.group import Group, Instance
from dask_infer.pipeline.scheduler.stage_tasks import StageTasks
from dask_infer.pipeline.scheduler.worker_states import WorkerState, worker_states
from dask_infer.plan.facts import ChainFacts
from dask_infer.spec import GroupSpec

logger = logging.getLogger(__name__)

#: The topic of the events that describe every change of a group.
TOPIC = "infer-groups"


class GroupTable:
    """The groups by their keys."""

    def __init__(self, scheduler: Scheduler, tasks: StageTasks) -> None:
        self.scheduler, self.tasks = scheduler, tasks
        self.groups: dict[str, Group] = {}
        #: What group requests measured of the blocks of a group's model.
        self.chains: dict[str, ChainFacts] = {}

    def __repr__(self) -> str:
        return f"<GroupTable {list(self.groups.values())}>"

    def __iter__(self) -> Iterator[Group]:
        """Go through the groups as they are now; they may be released meanwhile."""
        return iter(list(self.groups.values()))

    def workers(self, spec: GroupSpec) -> list[WorkerState]:
        """Return the state of each worker that sends heartbeats."""
        placed = [stage for group in self for stage in group.placed]
        return worker_states(self.scheduler, placed, spec)

    def notify(
        self, group: Group, what: str, level: int = logging.INFO, lost: bool = False
    ) -> None:
        """Describe a change to feeders, to the log and to subscribers."""
        logger.log(level, "group %s: %s", group.spec.key, what)
        self.scheduler.log_event(TOPIC, {"group": group.spec.key, "event": what})
        group.notify(lost)

    def start(self, group: Group, work: Coroutine[Any, Any, Any]) -> None:
        """Do something for a group; where it fails, the group is refused."""
        task = asyncio.ensure_future(work)
        group.tasks.add(task)
        task.add_done_callback(lambda done: self._ended(group, done))

    def _ended(self, group: Group, task: asyncio.Task[Any]) -> None:
        group.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, InferError):
            logger.error("group %s failed", group.spec.key, exc_info=error)
        if self.groups.get(group.spec.key) is group:
            self.refuse(group, error)

    def drop(
        self, group: Group, instance: Instance, why: str, level: int = logging.INFO
    ) -> None:
        """Cancel one of several instances."""
        group.instances.remove(instance)
        for placed in instance.placed.values():
            self.tasks.cancel(placed)
        self.notify(group, f"{instance.name} {why}", level, lost=True)

    def release(self, group: Group, why: str) -> None:
        """Cancel all stages of a group and forget it."""
        if self.groups.get(group.spec.key) is group:
            del self.groups[group.spec.key]
        self._cancel(group)
        if group.status != "refused":
            group.status = "released"
        self.notify(group, f"released: {why}")

    def refuse(self, group: Group, error: BaseException) -> None:
        """Cancel all stages of a group; every user gets the error."""
        self._cancel(group)
        group.refuse(error)
        self.notify(group, f"refused: {error}", logging.WARNING)

    def release_if_idle(self, group: Group) -> None:
        """Release a group that had no user for its idle timeout."""
        if group.used or group.idle_since is None:
            return
        if group.unloading or group.idle >= group.spec.timeouts.idle:
            self.release(group, f"no user for {group.idle:.0f} s")

    def _cancel(self, group: Group) -> None:
        for task in group.tasks - {asyncio.current_task()}:
            task.cancel()
        for placed in group.placed:
            self.tasks.cancel(placed)
        group.instances.clear()

    def make_room(self, newcomer: Group, where: set[str]) -> bool:
        """Release an idle group, or drop a spare instance, on the workers `where`.

        Returns whether there was any.
        """
        others = [
            group
            for group in self
            if group is not newcomer and where & {s.address for s in group.placed}
        ]
        why = f"makes room for {newcomer.spec.key}"
        idle = [group for group in others if not group.used]
        if idle:
            self.release(min(idle, key=lambda group: group.idle_since or 0), why)
            return True
        if any(instance.ready for instance in newcomer.instances):
            return False
        for group in others:
            for instance in reversed(group.instances):
                if group.is_spare(instance) and where & set(instance.addresses):
                    self.drop(group, instance, why)
                    return True
        return False
