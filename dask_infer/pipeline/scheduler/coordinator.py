"""The one owner of groups: a scheduler plugin that places, watches and releases them.

Registered by the first group request, it outlives every client and feeder, and
``client.restart()``. All of it runs on the scheduler's event loop. Invariants:

1. A stage is pinned to one worker (``allow_other_workers=True`` ignores resources and
   can break the scheduler's bookkeeping) and its key is used once: Dask counts the
   deaths of workers against keys.
2. All stages of an instance are placed or none, on distinct workers, by what is free.
3. After a loss the instance's epoch is higher before anyone hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import time
from math import inf
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_infer.errors import InferError, ModelLoadError, PlacementError, pickled
from dask_infer.pipeline.messages.group_state import Facts, GroupState
from dask_infer.pipeline.scheduler.group import Group, Instance, Placed
from dask_infer.pipeline.scheduler.placement import WorkerState
from dask_infer.pipeline.scheduler.placer import Placer
from dask_infer.pipeline.scheduler.planning import Measured
from dask_infer.pipeline.scheduler.stage_tasks import StageTasks
from dask_infer.pipeline.scheduler.worker_states import is_silent, worker_states
from dask_infer.spec import GroupSpec
from dask_infer.spec.group_spec import COORDINATOR

logger = logging.getLogger(__name__)

#: Where every change of a group is told: clients may subscribe.
TOPIC = "infer-groups"
#: Seconds after which a watcher is answered even if nothing changed.
POLL = 60.0
#: Seconds between two looks at idle groups and silent workers.
LOOK = 0.5
#: Seconds in which users may come back that were lost with the same worker.
RETURN = 5.0


class GroupCoordinator(SchedulerPlugin):
    """Every group of a cluster."""

    name = COORDINATOR
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Take up the handlers; awaits nothing, so that nobody registers a second one.

        Not synchronous: a scheduler awaits what its preloaded plugins start
        (distributed 2026.8.0).
        """
        self.scheduler = scheduler
        self.groups: dict[str, Group] = {}
        #: What requests found out about the layers of a group's model.
        self.measured: dict[str, Measured] = {}
        self.tasks = StageTasks(scheduler)
        self._looking = asyncio.ensure_future(self._look())
        for operation in ("knows", "open", "watch", "ready"):
            handler = getattr(self, f"_{operation}")
            scheduler.handlers[f"infer_{operation}"] = handler

    async def close(self) -> None:
        """Let go of everything, with the scheduler."""
        self._looking.cancel()
        for group in list(self.groups.values()):
            self.release(group, "the scheduler closes")
        await self.tasks.close()

    # --- what is asked of it -----------------------------------------------------

    async def _knows(self, key: str) -> bool:
        """Whether the layers of a group were told already."""
        return key in self.measured

    async def _open(
        self,
        spec: bytes,
        user: Any,
        is_request: bool,
        worker: str,
        measured: bytes | None = None,
    ) -> dict[str, Any]:
        """Note a user of a group; start to form it where nobody has."""
        self.tasks.attached.add(worker)
        task = self.scheduler.tasks.get(user)
        if task is None or task.state != "processing":
            # A cancelled feeder's thread may still ask; nobody would ever take it off.
            gone = PlacementError(f"task {user} is not wanted any more")
            return GroupState(0, "refused", error=pickled(gone)).to_message()
        wanted: GroupSpec = pickle.loads(spec)
        if measured is not None:
            self.measured[wanted.key] = pickle.loads(measured)
        group = self.groups.get(wanted.key)
        if group is None or group.status in ("refused", "released"):
            group = self.groups[wanted.key] = Group(wanted)
            self._start(group, Placer(self, group).form())
        (group.requests if is_request else group.feeders).add(user)
        group.idle_since = None
        return group.state().to_message()

    async def _watch(self, key: str, version: int) -> dict[str, Any]:
        """Return the state of a group once it is newer than `version`."""
        group = self.groups.get(key)
        if group is None:
            return GroupState(Group.next_version(), "released").to_message()
        if group.version <= version:
            changed = group.changed
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(changed.wait(), POLL)
        return group.state().to_message()

    async def _ready(
        self, instance: str, index: int, epoch: int, facts: dict[str, Any]
    ) -> dict[str, Any]:
        """Note that a stage serves."""
        for group in self.groups.values():
            for each in group.instances:
                placed = each.placed.get(index)
                if each.name != instance or placed is None:
                    continue
                if placed.order.epoch == epoch:
                    placed.ready = True
                    if index == 0:
                        group.facts = Facts.from_message(facts)
                    self.tell(group, f"stage {index} of {instance} serves")
        return {"status": "done"}

    def unload(self, content: str | None) -> None:
        """Let go of the groups of one model, or of all, once nobody uses them."""
        for group in list(self.groups.values()):
            if content in (None, group.spec.model.key):
                group.unloading = True
                self._release_if_idle(group)

    # --- what happens to the cluster ---------------------------------------------

    def transition(
        self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any
    ) -> None:
        """Forget users whose tasks are done with."""
        gone = finish in ("released", "forgotten", "erred")
        for group in list(self.groups.values()):  # releasing one takes it off
            if finish != "processing" and key in group.feeders:
                group.feeders.discard(key)
            elif gone and key in group.requests:
                group.requests.discard(key)
            else:
                continue
            self._idle(group)

    def _grow(self) -> None:
        """Let groups in use that take what they can get grow, if nobody waits."""
        groups = list(self.groups.values())
        if any(instance.missing for f in groups for instance in f.instances):
            return
        for group in groups:
            grows = group.spec.layout.replicas == "auto" and group.used
            if grows and group.status == "ready":
                Placer(self, group).grow()

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Raise the epochs of the instances that had a stage there."""
        self.tasks.attached.discard(worker)
        for group in list(self.groups.values()):
            for instance in list(group.instances):
                if worker in instance.addresses:
                    self.lose(group, instance, worker)

    def restart(self, scheduler: Scheduler) -> None:
        """All workers are new: nothing is placed any more."""
        for group in list(self.groups.values()):
            group.requests.clear()
            group.feeders.clear()
            self.release(group, "the cluster restarts")

    # --- groups ------------------------------------------------------------------

    def lose(self, group: Group, instance: Instance, worker: str) -> None:
        """Place the stages of a worker that is gone anew, under a higher epoch."""
        lost = [i for i, p in instance.placed.items() if p.address == worker]
        instance.epoch += 1
        for index in lost:
            self.tasks.cancel(instance.placed.pop(index))
        names = ", ".join(f"stage {index}" for index in lost)
        self.tell(group, f"worker {worker} is gone, and {names} of {instance.name}")
        if group.used or self._idle_for(group) < RETURN:
            self._start(group, Placer(self, group).mend(instance))
        else:
            self.release(group, "nobody uses it")

    def drop(
        self, group: Group, instance: Instance, why: str, level: int = logging.INFO
    ) -> None:
        """Do without one of several instances."""
        group.instances.remove(instance)
        for placed in instance.placed.values():
            self.tasks.cancel(placed)
        self.tell(group, f"{instance.name} {why}", level)

    def release(self, group: Group, why: str) -> None:
        """Let all stages of a group go."""
        if self.groups.get(group.spec.key) is group:
            del self.groups[group.spec.key]
        self._clear(group)
        if group.status != "refused":
            group.status = "released"
        self.tell(group, f"released: {why}")

    def refuse(self, group: Group, error: BaseException) -> None:
        """Let a group go with an error for its users."""
        self._clear(group)
        group.refuse(error)
        self.tell(group, f"refused: {error}", logging.WARNING)

    def _clear(self, group: Group) -> None:
        current = asyncio.current_task() if _in_task() else None
        for task in list(group.tasks):
            if task is not current:
                task.cancel()
        for instance in group.instances:
            for placed in instance.placed.values():
                self.tasks.cancel(placed)
        group.instances.clear()

    def tell(self, group: Group, what: str, level: int = logging.INFO) -> None:
        """Tell feeders, the log, and who subscribed, of a change."""
        logger.log(level, "group %s: %s", group.spec.key, what)
        self.scheduler.log_event(TOPIC, {"group": group.spec.key, "event": what})
        group.tell()

    def place(self, group: Group, instance: Instance, index: int, address: str) -> None:
        """Note a stage as placed, and submit its task."""
        order = group.order(instance, index)
        placed = instance.placed[index] = Placed(order, address, None)
        self._start(group, self._run(group, instance, placed))

    async def _run(self, group: Group, instance: Instance, placed: Placed) -> None:
        """Run a stage's task; what becomes of the group where it ends by itself."""
        error = await self.tasks.run(placed)
        index, address = placed.order.index, placed.address
        if placed.given_up or instance.placed.get(index) is not placed:
            return
        if address not in self.scheduler.workers:  # `remove_worker` sees to it
            return
        if error is None:
            self.lose(group, instance, address)
        elif group.is_spare(instance):
            group.unfit.add(address)
            told = _told(group.spec, index, address, error)
            self.drop(group, instance, f"cannot be loaded: {told}", logging.WARNING)
        else:
            self.refuse(group, _told(group.spec, index, address, error))

    def _start(self, group: Group, work: Any) -> None:
        task = asyncio.ensure_future(work)
        group.tasks.add(task)
        task.add_done_callback(lambda done: self._ended(group, done))

    def _ended(self, group: Group, task: asyncio.Task[Any]) -> None:
        group.tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        assert error is not None
        if not isinstance(error, InferError):
            logger.error("group %s failed", group.spec.key, exc_info=error)
        if self.groups.get(group.spec.key) is group:
            self.refuse(group, error)

    # --- workers -----------------------------------------------------------------

    def workers(self, spec: GroupSpec) -> list[WorkerState]:
        """Return what each worker that is heard of has, has free, and holds."""
        return worker_states(self.scheduler, self.groups.values(), spec)

    def make_room(self, newcomer: Group, where: set[str]) -> bool:
        """Have an idle group give way, or a spare instance of a busy one.

        Only what holds one of the workers `where` gives way. Returns whether anything
        did.
        """
        others = [
            f for f in self.groups.values() if f is not newcomer and f.is_on(where)
        ]
        idle = [f for f in others if not f.used and f.instances]
        if idle:
            oldest = min(idle, key=lambda f: f.idle_since or 0)
            self.release(oldest, f"gives way to {newcomer.spec.key}")
            return True
        if any(each.ready for each in newcomer.instances):
            return False
        for group in others:
            for instance in reversed(group.instances):
                if group.is_spare(instance) and where & set(instance.addresses):
                    self.drop(group, instance, f"gives way to {newcomer.spec.key}")
                    return True
        return False

    # --- the passing of time -----------------------------------------------------

    def _idle(self, group: Group) -> None:
        if not group.used and group.idle_since is None:
            group.idle_since = time.monotonic()
            self._release_if_idle(group)

    def _idle_for(self, group: Group) -> float:
        return time.monotonic() - (group.idle_since or -inf)

    def _release_if_idle(self, group: Group) -> None:
        if group.used or group.idle_since is None:
            return
        idle = self._idle_for(group)
        if group.unloading or idle >= group.spec.patience.idle:
            self.release(group, f"nobody used it for {idle:.0f} s")

    async def _look(self) -> None:
        """Release idle groups, lose silent workers, and let groups grow."""
        while True:
            await asyncio.sleep(LOOK)
            for group in list(self.groups.values()):
                self._release_if_idle(group)
                for instance in list(group.instances):
                    self._look_at(group, instance)
            self._grow()

    def _look_at(self, group: Group, instance: Instance) -> None:
        for placed in list(instance.placed.values()):
            if is_silent(self.scheduler, placed.address, group.spec.patience.stall):
                self.lose(group, instance, placed.address)
                return
            # Feeders may have come since it was placed.
            if not placed.ready and placed.future is not None:
                self._start(group, self.tasks.make_way(placed))


def _told(spec: GroupSpec, index: int, address: str, error: BaseException) -> Exception:
    if isinstance(error, InferError):
        return error
    ended = ModelLoadError(
        f'stage {index} of model "{spec.model.name}" ended on worker {address}: '
        f"{type(error).__name__}: {error}"
    )
    ended.__cause__ = error
    return ended


def _in_task() -> bool:
    try:
        return asyncio.current_task() is not None
    except RuntimeError:
        return False
