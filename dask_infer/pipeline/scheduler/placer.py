"""The placement of one group: stages planned, placed all or none, replaced, refused.

Runs on the scheduler's event loop. Nothing is awaited between reading the workers and
noting a stage as placed, so two groups never count on the same worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Literal

from dask_infer.errors import InferError, ModelLoadError, PlacementError
from dask_infer.pipeline.scheduler.group import Group, Instance, PlacedStage
from dask_infer.pipeline.scheduler.group_table import GroupTable
from dask_infer.pipeline.scheduler.worker_states import (
    WorkerState,
    candidates,
    remedy,
    shortage,
)
from dask_infer.plan.facts import ChainFacts, WorkerFacts
from dask_infer.plan.microbatch_size import microbatch_rows
from dask_infer.plan.plan_pipeline import plan_pipeline
from dask_infer.plan.shards import ShardPlan, chain_in_shards, plan_shards
from dask_infer.plan.units import in_bytes
from dask_infer.spec import GroupSpec

#: Seconds between two looks at the workers while one is missing.
POLL_SECONDS = 0.1
#: Seconds that a group which makes room may take to free its workers.
MAKES_ROOM = 1.0
#: Seconds in which users may come back that were lost with the same worker.
RETURN = 5.0


class Placer:
    """Finds workers for one group."""

    def __init__(self, table: GroupTable, group: Group) -> None:
        self.table, self.group = table, group
        self.spec = group.spec
        self.resources = group.spec.resources

    async def form(self) -> None:
        """Place the first instance, then as many more as are wanted and fit.

        Raises
        ------
        PlacementError
            If there are too few workers after the grace.
        """
        bounds: tuple[int, ...] = (0, 1)
        nbytes: tuple[int, ...] = (self.spec.model.nbytes,)
        planned: tuple[str, ...] = ()
        asked = self.spec.layout.microbatch
        self.group.microbatch = None if asked == "auto" else asked
        shards = 1
        if self.spec.is_divided:
            plan = await self._plan(self.table.chains[self.spec.key])
            bounds, planned, shards = plan.stages.bounds, plan.workers, plan.shards
            nbytes = tuple(s.nbytes for s in plan.stages.stages for _ in range(shards))
        wanted = self.spec.layout.replicas
        count = 1 if wanted == "auto" else wanted
        for number in range(count):
            instance = self.group.new_instance(bounds, nbytes, shards)
            instance.planned = planned if number == 0 else ()
            await self._fill(instance)
        if wanted == "auto":
            self.grow()

    async def _plan(self, chain: ChainFacts) -> ShardPlan:
        """Plan the stages, once there are workers that could hold them.

        Every worker counts that could hold a stage, busy or not: a plan made for the
        few that are free at this moment would stay.
        """
        deadline = time.monotonic() + self.spec.patience.grace
        while True:
            able = [w for w in self._workers() if w.has(self.resources)]
            try:
                plan = plan_stages(self.spec, chain, able)
                break
            except PlacementError as error:
                if time.monotonic() >= deadline:
                    raise PlacementError(
                        f'model "{self.spec.model.name}": {error} (waited '
                        f"{self.spec.patience.grace:g} s, infer.placement.grace); "
                        f"{remedy(self.resources)}"
                    ) from error
            await asyncio.sleep(POLL_SECONDS)
        lines = ["planned", plan.stages.table(), *filter(None, [chain.note])]
        if self.group.microbatch is None:
            self.group.microbatch = microbatch_rows(
                plan.stages, chain_in_shards(chain, plan.shards)
            )
        if self.group.microbatch is not None:
            lines.append(f"Microbatches of {self.group.microbatch} rows.")
        self.table.notify(self.group, "\n".join(lines))
        return plan

    def grow(self) -> None:
        """Add instances as long as there are free workers for all of their stages."""
        first = self.group.instances[0]
        about = (first.bounds, first.nbytes, first.shards)
        while (found := self._find(first, first.slots, taken=())) is not None:
            self._place(self.group.new_instance(*about), found)

    def lose(self, instance: Instance, worker: str) -> None:
        """Place the stages of a worker that is gone again, under a higher epoch."""
        lost = [i for i, p in instance.placed.items() if p.address == worker]
        instance.epoch += 1
        for index in lost:
            self.table.tasks.cancel(instance.placed.pop(index))
        names = ", ".join(map(instance.slot_name, lost))
        self.table.notify(
            self.group, f"worker {worker} is gone, and {names} of {instance.name}"
        )
        if self.group.used or self.group.idle < RETURN:
            self.table.start(self.group, self._replace(instance))
        else:
            self.table.release(self.group, "it has no user")

    async def _replace(self, instance: Instance) -> None:
        """Place the stages that an instance lost, or drop it where it is spare."""
        others = [i for i in self.group.instances if i is not instance and i.ready]
        spare = others and self.group.is_spare(instance)
        found = self._find(instance, instance.missing, instance.addresses)
        if spare and found is None:
            self.table.drop(self.group, instance, "has no place any more")
        else:
            await self._fill(instance)

    async def _fill(self, instance: Instance) -> None:
        """Place all missing stages; wait up to the grace where workers are missing."""
        deadline = time.monotonic() + self.spec.patience.grace
        notified, made_room = False, -MAKES_ROOM
        while instance in self.group.instances:
            found = self._find(instance, instance.missing, instance.addresses)
            if found is not None:
                self._place(instance, found)
                return
            # A group that makes room frees its workers in a moment: one at a time.
            waited = time.monotonic() - made_room > MAKES_ROOM
            if waited and self.table.make_room(self.group, self._occupied(instance)):
                made_room = time.monotonic()
            if not notified:
                notified = True
                self.table.notify(self.group, f"waits: {self._shortage(instance)}")
            if time.monotonic() >= deadline:
                raise self._refusal(instance)
            await asyncio.sleep(POLL_SECONDS)

    def _find(
        self, instance: Instance, missing: Sequence[int], taken: Collection[str]
    ) -> dict[int, str] | None:
        """Return a worker for each missing slot, or None; the largest choose first."""
        workers = self._workers()
        free = candidates(workers, self.resources, taken)
        hosts = {w.address: w.host for w in workers}
        found: dict[int, str] = {}
        # Without `taken` it is another instance, cut alike.
        where = {s: p.address for s, p in instance.placed.items() if taken}
        for slot in sorted(missing, key=lambda i: -instance.nbytes[i]):
            fits = [w for w in free if w.fits(instance.nbytes[slot])]
            if not fits:
                return None
            planned = instance.planned[slot] if instance.planned else None
            others = [{**where, **found}.get(n) for n in instance.shards_with(slot)]
            near = {hosts[address] for address in others if address in hosts}
            if not near:
                room = Counter(worker.host for worker in fits)
                near = {h for h, count in room.items() if count >= instance.shards}
            # The smallest that is large enough leaves the others for larger stages.
            best = min(
                fits,
                key=lambda w: (
                    *(w.address != planned, w.host not in near, len(w.holds)),
                    w.memory or 0,
                ),
            )
            free.remove(best)
            found[slot] = best.address
        return found

    def _workers(self) -> list[WorkerState]:
        workers = self.table.workers(self.spec)
        return [w for w in workers if w.address not in self.group.unfit]

    def _occupied(self, instance: Instance) -> set[str]:
        """Workers that others could free; empty where all of them were too few."""
        taken = set(instance.addresses)
        able = {w.address for w in self._workers() if w.has(self.resources)} - taken
        return able if len(able) >= len(instance.missing) else set()

    def _place(self, instance: Instance, found: dict[int, str]) -> None:
        for index, address in sorted(found.items()):
            placed = self.group.place(instance, index, address)
            self.table.start(self.group, self._run(instance, placed))
        names = {slot: instance.slot_name(slot) for slot in found}
        where = ", ".join(f"{names[slot]} on {a}" for slot, a in sorted(found.items()))
        self.table.notify(self.group, f"{instance.name}: {where}")

    async def _run(self, instance: Instance, placed: PlacedStage) -> None:
        """Run a stage's task; decide for the group where it ends by itself."""
        error = await self.table.tasks.run(placed)
        slot, address = placed.spec.slot, placed.address
        if placed.cancelled or instance.placed.get(slot) is not placed:
            return
        if address not in self.table.scheduler.workers:  # `remove_worker` does the rest
            return
        if error is None:
            self.lose(instance, address)
            return
        if not isinstance(error, InferError):
            cause, error = (
                error,
                ModelLoadError(
                    f'{placed.spec.name} of model "{self.spec.model.name}" ended on '
                    f"worker {address}: {type(error).__name__}: {error}"
                ),
            )
            error.__cause__ = cause
        if self.group.is_spare(instance):
            self.group.unfit.add(address)
            why = f"cannot be loaded: {error}"
            self.table.drop(self.group, instance, why, logging.WARNING)
        else:
            self.table.refuse(self.group, error)

    def _shortage(self, instance: Instance) -> str:
        missing, workers = instance.missing, self._workers()
        lacks = shortage(workers, self.resources, len(missing), instance.addresses)
        largest = max(instance.nbytes[index] for index in missing)
        able = [w for w in workers if w.has(self.resources)]
        if able and not any(worker.fits(largest) for worker in able):
            most = max(worker.memory or 0 for worker in able)
            lacks += (
                f"; a stage of {in_bytes(largest)} fits no worker: models may take "
                f"{in_bytes(most)}"
            )
        return lacks

    def _refusal(self, instance: Instance) -> PlacementError:
        names = map(instance.slot_name, instance.missing)
        what = ", ".join(names) if len(instance.slots) > 1 else "its replica"
        return PlacementError(
            f'model "{self.spec.model.name}" has no place for {what} after '
            f"{self.spec.patience.grace:g} s (infer.placement.grace): "
            f"{self._shortage(instance)}; {remedy(self.resources)}"
        )


def plan_stages(
    spec: GroupSpec, chain: ChainFacts, able: Sequence[WorkerState]
) -> ShardPlan:
    """Plan the stages of one instance for the workers that could hold them.

    Raises
    ------
    PlacementError
        If they fit nowhere.
    """
    workers = [WorkerFacts(w.address, w.memory, host=w.host) for w in able]
    stages: int | Literal["auto"] | tuple[int, ...]
    if isinstance(spec.layout.stages, tuple):
        stages = tuple(range(1, len(chain.blocks)))  # it has no other places to be cut
    else:
        stages = spec.layout.stages
    if spec.layout.shards != 1:
        return plan_shards(chain.blocks, workers, stages, spec.layout.shards)
    plan = plan_pipeline(chain.blocks, workers, stages)[0]
    return ShardPlan(plan, 1, plan.workers)
