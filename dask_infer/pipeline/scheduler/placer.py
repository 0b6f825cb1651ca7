"""Workers found for the stages of a group: planned, placed all or none, or refused.

Runs on the scheduler's event loop, for one group at a time. Between looking at the
workers and noting a stage as placed nothing is awaited, so two groups never count on
the same place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from dask_infer.errors import PlacementError
from dask_infer.pipeline.scheduler.group import Group, Instance
from dask_infer.pipeline.scheduler.placement import (
    WorkerState,
    candidates,
    remedy,
    shortage,
)
from dask_infer.plan.units import in_bytes

if TYPE_CHECKING:
    from dask_infer.pipeline.scheduler.coordinator import GroupCoordinator

logger = logging.getLogger(__name__)

#: Seconds between two looks at the workers while a place is missing.
LOOK = 0.1
#: Seconds that a group which gives way may take to do so.
GIVES_WAY = 1.0


class Placer:
    """The search for the workers of one group."""

    def __init__(self, coordinator: GroupCoordinator, group: Group) -> None:
        self.coordinator, self.group = coordinator, group
        self.spec = group.spec
        self.resources = group.spec.resources

    async def form(self) -> None:
        """Place the first instance, then as many more as are wanted and find room."""
        from dask_infer.pipeline.scheduler.planning import plan_stages

        plan = await plan_stages(self)
        self.group.microbatch = plan.microbatch
        if plan.told:
            self.coordinator.tell(self.group, f"planned\n{plan.told}")
        wanted = self.spec.layout.replicas
        count = 1 if wanted == "auto" else wanted
        for number in range(count):
            instance = self.group.new_instance(plan.bounds, plan.nbytes)
            instance.planned = plan.workers if number == 0 else ()
            await self.fill(instance, f"replica {number + 1} of {count}")
        if wanted == "auto":
            self.grow()

    def grow(self) -> None:
        """Add instances as long as there are free workers for all of their stages."""
        first = self.group.instances[0]
        while True:
            found = self.find(first, range(first.stages), taken=())
            if found is None:
                return
            more = self.group.new_instance(first.bounds, first.nbytes)
            self._place(more, found)

    async def mend(self, instance: Instance) -> None:
        """Place the stages that an instance lost, or do without it."""
        if instance not in self.group.instances:  # given up meanwhile
            return
        others = [i for i in self.group.instances if i is not instance and i.ready]
        if others and self.spec.layout.replicas == "auto":
            found = self.find(instance, instance.missing, instance.addresses)
            if found is None:
                self.coordinator.drop(self.group, instance, "has no place any more")
                return
        await self.fill(instance, "lost")

    async def fill(self, instance: Instance, what: str) -> None:
        """Place all missing stages; wait up to the grace where workers are missing.

        Raises
        ------
        PlacementError
            If there is no room; says what is missing and who has it.
        """
        deadline = time.monotonic() + self.spec.patience.grace
        told, gave_way = False, -GIVES_WAY
        while instance in self.group.instances:
            missing = instance.missing
            found = self.find(instance, missing, instance.addresses)
            if found is not None:
                self._place(instance, found)
                return
            # What gives way frees its place in a moment: one after the other.
            waited = time.monotonic() - gave_way > GIVES_WAY
            if waited and self.coordinator.make_room(self.group, self._held(instance)):
                gave_way = time.monotonic()
            if not told:
                told = True
                self.coordinator.tell(self.group, f"waits: {self._shortage(instance)}")
            if time.monotonic() >= deadline:
                raise self._refusal(instance)
            await asyncio.sleep(LOOK)

    def find(
        self,
        instance: Instance,
        missing: list[int] | range,
        taken: list[str] | tuple[()],
    ) -> dict[int, str] | None:
        """Return a worker for each missing stage, or None; the largest choose first."""
        free = candidates(self.workers(), self.resources, taken)
        found: dict[int, str] = {}
        for index in sorted(missing, key=lambda i: -instance.nbytes[i]):
            fits = [w for w in free if _fits(instance.nbytes[index], w)]
            if not fits:
                return None
            planned = instance.planned[index] if instance.planned else None
            # The smallest that is large enough leaves the others for larger stages.
            best = min(
                fits,
                key=lambda w: (w.address != planned, len(w.holds), w.memory or 0),
            )
            free.remove(best)
            found[index] = best.address
        return found

    def workers(self) -> list[WorkerState]:
        """Return what the scheduler knows of every worker that can load a stage."""
        workers = self.coordinator.workers(self.spec)
        return [w for w in workers if w.address not in self.group.unfit]

    def _held(self, instance: Instance) -> set[str]:
        """Workers that would do if others gave way; none where they were too few."""
        taken = set(instance.addresses)
        able = {w.address for w in self.workers() if w.has(self.resources)} - taken
        return able if len(able) >= len(instance.missing) else set()

    def _place(self, instance: Instance, found: dict[int, str]) -> None:
        for index, address in sorted(found.items()):
            self.coordinator.place(self.group, instance, index, address)
        where = ", ".join(f"stage {i} on {a}" for i, a in sorted(found.items()))
        self.coordinator.tell(self.group, f"{instance.name}: {where}")

    def _shortage(self, instance: Instance) -> str:
        missing, taken = instance.missing, instance.addresses
        workers = self.workers()
        told = shortage(workers, self.resources, len(missing), taken)
        largest = max(instance.nbytes[index] for index in missing)
        able = [w for w in workers if w.has(self.resources)]
        if able and not any(_fits(largest, worker) for worker in able):
            most = max(worker.memory or 0 for worker in able)
            told += f"; stage of {in_bytes(largest)} fits none: models may take "
            told += in_bytes(most)
        return told

    def _refusal(self, instance: Instance) -> PlacementError:
        names = [f"stage {index}" for index in instance.missing]
        what = ", ".join(names) if instance.stages > 1 else "its replica"
        return PlacementError(
            f'model "{self.spec.model.name}" has no place for {what} after '
            f"{self.spec.patience.grace:g} s (infer.placement.grace): "
            f"{self._shortage(instance)}; {remedy(self.resources)}"
        )


def _fits(nbytes: int, worker: WorkerState) -> bool:
    return worker.memory is None or nbytes <= worker.memory
