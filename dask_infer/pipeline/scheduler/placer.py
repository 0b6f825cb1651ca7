"""The placement of one group: stages planned, placed all or none, replaced, refused.

Runs on the scheduler's event loop. Nothing is awaited between reading the workers and
noting a stage as placed, so two groups never count on the same worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

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
from dask_infer.plan.layouts.shards import in_shards, plan_layout
from dask_infer.plan.microbatch_size import microbatch_rows
from dask_infer.plan.replicas import next_replica
from dask_infer.plan.stage_plan import StagePlan
from dask_infer.plan.units import in_bytes

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

    async def form(self, placed: asyncio.Future[None], grows: bool) -> None:
        """Place more instances, once the first one is placed; else raise why not.

        `grows` says whether the group may take at once what is free.
        """
        await asyncio.shield(placed)
        first, wanted = self.group.instances[0], self.spec.layout.replicas
        if wanted == "auto":
            while grows and self.grow():
                pass
            return
        for _ in range(wanted - 1):
            more = self.group.new_instance(*first.layout)
            await fill([(self, more)])

    async def first_instance(self) -> Instance:
        """Return the first instance, planned and not placed yet."""
        asked = self.spec.layout.microbatch
        self.group.microbatch = None if asked == "auto" else asked
        if not self.spec.is_divided:
            return self.group.new_instance((0, 1), (self.spec.model.nbytes,))
        chain = self.table.chains[self.spec.key]
        plan = await self._plan(chain)
        shards = plan.shards
        nbytes = [s.nbytes for s in plan.stages for _ in range(shards)]
        cuts = chain.cuts if chain.shards == shards else b""
        instance = self.group.new_instance(plan.bounds, nbytes, shards, cuts)
        instance.planned = plan.workers
        return instance

    async def _plan(self, chain: ChainFacts) -> StagePlan:
        """Plan the stages, once there are workers that could hold them.

        Every worker counts that could hold a stage, busy or not: a plan made for the
        few that are free at this moment would stay.
        """
        deadline = time.monotonic() + self.spec.timeouts.grace
        while True:
            able = [w for w in self._workers() if w.has(self.resources)]
            try:
                workers = [WorkerFacts(w.address, w.memory, host=w.host) for w in able]
                plan = plan_layout(self.spec.layout, chain.blocks, workers)
                break
            except PlacementError as error:
                if self.group.ended or time.monotonic() >= deadline:
                    more = remedy(self.resources, several=False)
                    hint = f"; {more}" if self.resources else ""
                    raise PlacementError(
                        f'model "{self.spec.model.name}": {error} (waited '
                        f"{self.spec.timeouts.grace:g} s, infer.placement.grace){hint}"
                    ) from error
            await asyncio.sleep(POLL_SECONDS)
        lines = ["planned", plan.table(), *filter(None, [chain.note])]
        if self.group.microbatch is None and chain.fewer is not None:
            few = zip(chain.blocks, chain.fewer, strict=True)
            blocks = [replace(block, seconds=seconds) for block, seconds in few]
            fewer = [block.seconds for block in in_shards(blocks, plan.shards)]
            self.group.microbatch = microbatch_rows(plan, fewer)
        if self.group.microbatch is not None:
            lines.append(f"Microbatches of {self.group.microbatch} rows.")
        self.table.notify(self.group, "\n".join(lines))
        return plan

    def grow(self) -> bool:
        """Add an instance; False where no workers are free for all of its stages."""
        first = self.group.instances[0]
        found = self._find(replace(first, placed={}))  # another one that is cut alike
        if found is None:
            return False
        more = self.group.new_instance(*first.layout)
        self.run(more, [self.group.place(more, i, a) for i, a in found.items()])
        return True

    def lose(self, instance: Instance, worker: str) -> None:
        """Place the stages of a worker that is gone again, under a higher epoch."""
        lost = [i for i, p in instance.placed.items() if p.address == worker]
        instance.epoch += 1
        for index in lost:
            self.table.tasks.cancel(instance.placed.pop(index))
        names = ", ".join(map(instance.slot_name, lost))
        self.table.notify(
            self.group,
            f"worker {worker} is gone, and {names} of {instance.name}",
            lost=True,
        )
        if self.group.used or self.group.idle < RETURN:
            self.table.start(self.group, self._replace(instance))
        else:
            self.table.release(self.group, "it has no user")

    async def _replace(self, instance: Instance) -> None:
        """Place the stages that an instance lost, or drop it where it is spare."""
        others = [i for i in self.group.instances if i is not instance and i.ready]
        spare = others and self.group.is_spare(instance)
        if spare and self._find(instance) is None:
            self.table.drop(self.group, instance, "has no place any more")
        else:
            await fill([(self, instance)])

    def place(self, instance: Instance) -> list[PlacedStage] | None:
        """Note a worker for each missing stage; None where one has none."""
        found = self._find(instance)
        if found is None:
            return None
        return [self.group.place(instance, i, a) for i, a in sorted(found.items())]

    def _find(self, instance: Instance) -> dict[int, str] | None:
        """Return a worker for each missing slot, or None; the largest choose first."""
        workers = self._workers()
        free = candidates(workers, self.resources, instance.addresses)
        hosts = {w.address: w.host for w in workers}
        found: dict[int, str] = {}
        where = {slot: placed.address for slot, placed in instance.placed.items()}
        for slot in sorted(instance.missing, key=lambda i: -instance.nbytes[i]):
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

    def occupied(self, instance: Instance) -> set[str]:
        """Return workers that others could free; none where all were too few."""
        taken = set(instance.addresses)
        able = {w.address for w in self._workers() if w.has(self.resources)} - taken
        return able if len(able) >= len(instance.missing) else set()

    def run(self, instance: Instance, placed: Sequence[PlacedStage]) -> None:
        """Start the tasks of stages that were placed."""
        for stage in placed:
            self.table.start(self.group, self._run(instance, stage))
        where = ", ".join(f"{p.spec.layers.name} on {p.address}" for p in placed)
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
                    f'{placed.spec.layers.name} of model "{self.spec.model.name}" '
                    f"ended on worker {address}: {type(error).__name__}: {error}"
                ),
            )
            error.__cause__ = cause
        if self.group.is_spare(instance):
            self.group.unfit.add(address)
            why = f"cannot be loaded: {error}"
            self.table.drop(self.group, instance, why, logging.WARNING)
        else:
            self.table.refuse(self.group, error)

    def shortage(self, instance: Instance) -> str:
        """Describe what an instance lacks."""
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

    def refusal(self, instance: Instance, shortage: str) -> PlacementError:
        """Return the error for an instance that found no place within the grace."""
        names = map(instance.slot_name, instance.missing)
        several = len(instance.slots) > 1
        what = ", ".join(names) if several else "its replica"
        return PlacementError(
            f'model "{self.spec.model.name}" has no place for {what} after '
            f"{self.spec.timeouts.grace:g} s (infer.placement.grace): "
            f"{shortage}; {remedy(self.resources, several=several)}"
        )


async def fill(wanted: Sequence[tuple[Placer, Instance]]) -> None:
    """Place all missing stages of these instances, or none of them yet.

    Instances of several groups are placed together where one job needs all: two jobs
    that each held some would wait for each other. Raises `PlacementError` if workers
    are missing after the grace.
    """
    began = time.monotonic()
    notified, made_room = False, -MAKES_ROOM
    while True:
        wanted = [
            (placer, instance)
            for placer, instance in wanted
            if instance in placer.group.instances and not placer.group.ended
        ]
        lacking = _place_all(wanted)
        if lacking is None:
            return
        placer, instance, shortage = lacking
        # A group that makes room frees its workers in a moment: one at a time.
        waited = time.monotonic() - made_room > MAKES_ROOM
        where = placer.occupied(instance)
        if waited and placer.table.make_room(placer.group, where):
            made_room = time.monotonic()
        if not notified:
            notified = True
            placer.table.notify(placer.group, f"waits: {shortage}")
        if time.monotonic() - began >= placer.spec.timeouts.grace:
            raise placer.refusal(instance, shortage)
        await asyncio.sleep(POLL_SECONDS)


def _place_all(
    wanted: Sequence[tuple[Placer, Instance]],
) -> tuple[Placer, Instance, str] | None:
    """Place and start these instances; else none, and return one and what it lacks."""
    placed: list[tuple[Placer, Instance, list[PlacedStage]]] = []
    for placer, instance in wanted:
        stages = placer.place(instance)
        if stages is None:
            shortage = placer.shortage(instance)
            for _, other, noted in placed:
                for stage in noted:
                    del other.placed[stage.spec.slot]
            return placer, instance, shortage
        placed.append((placer, instance, stages))
    for placer, instance, stages in placed:
        placer.run(instance, stages)
    return None


async def place_first(placers: Sequence[Placer]) -> None:
    """Place the first instance of each group, all or none, as `fill` does."""
    # Those that can be on few workers choose first.
    ordered = sorted(placers, key=lambda placer: -len(placer.resources))
    wanted = []
    for placer in ordered:
        try:
            wanted.append((placer, await placer.first_instance()))
        except PlacementError:
            # One that was released meanwhile does not refuse the others.
            if not placer.group.ended:
                raise
    await fill(wanted)


def grow_slowest(table: GroupTable, groups: Sequence[Group]) -> None:
    """Add instances while workers are free, next to the group that is the slowest."""
    growing = list(groups)
    while growing:
        seconds = [group.seconds_per_row or 0.0 for group in growing]
        replicas = [len(group.instances) for group in growing]
        slowest = growing[next_replica(seconds, replicas)]
        if not Placer(table, slowest).grow():
            growing.remove(slowest)
