"""The workers of a cluster as the coordinator sees them, and who can hold a stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from distributed import Scheduler
from distributed.scheduler import WorkerState as DaskWorkerState

from dask_infer.metrics.cluster_sums import Message
from dask_infer.pipeline.scheduler.group import Group, PlacedStage
from dask_infer.plan.units import count
from dask_infer.spec import GroupSpec

#: Bytes of a worker process that has imported torch and what splits models (torch
#: 2.13.0), before it holds any.
PROCESS_BYTES = 480 * 2**20

Resources = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class WorkerState:
    """One worker: what it has, what is free, and which stages it holds."""

    address: str
    #: Dask resources in all, and those that no task holds.
    total: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)
    #: Bytes that models may take; None where the worker has no memory limit.
    memory: int | None = None
    host: str = ""
    #: Stages that it holds, by the name of their model.
    holds: tuple[str, ...] = ()

    def has(self, resources: Resources) -> bool:
        """Whether it could ever hold a stage."""
        return all(self.total.get(name, 0) >= amount for name, amount in resources)

    def is_free(self, resources: Resources) -> bool:
        """Whether it can hold one now; without resources it holds no other."""
        if not resources:
            return not self.holds
        return all(self.free.get(name, 0) >= amount for name, amount in resources)

    def fits(self, nbytes: int) -> bool:
        """Whether it has the memory for a stage."""
        return self.memory is None or nbytes <= self.memory


def worker_states(
    scheduler: Scheduler, placed: Iterable[PlacedStage], spec: GroupSpec
) -> list[WorkerState]:
    """Return the state of each worker that sends heartbeats.

    `placed` has the stages of all groups, `spec` is what is to be placed.
    """
    stages: dict[str, list[PlacedStage]] = {}
    for stage in placed:
        stages.setdefault(stage.address, []).append(stage)
    return [
        _state(scheduler, worker, stages.get(worker.address, []), spec)
        for worker in scheduler.running
        if not is_silent(scheduler, worker.address, spec.timeouts.stall)
    ]


def is_silent(scheduler: Scheduler, address: str, seconds: float) -> bool:
    """Whether a worker sent no heartbeat for so long: it is blocked or frozen."""
    worker = scheduler.workers.get(address)
    return worker is not None and time.time() - worker.last_seen > seconds


def seconds_per_row(scheduler: Scheduler, group: Group) -> float | None:
    """Return the seconds of a row in a group's slowest stage; None until it is seen."""
    seconds: dict[int, float] = {}
    rows: dict[int, float] = {}
    for address in {placed.address for placed in group.placed}:
        # It has left, has counted nothing yet, or counts as another version does.
        with contextlib.suppress(KeyError, TypeError, ValueError):
            message = Message.read(scheduler.workers[address].metrics["infer"])
            for label, sums in message.by_model.items():
                if label.model == group.spec.model.label and label.stage is not None:
                    stage = label.stage
                    rows[stage] = rows.get(stage, 0) + sums.count("rows")
                    forward = sums.seconds.get("forward", 0)
                    seconds[stage] = seconds.get(stage, 0) + forward
    if not rows or not all(rows.values()):
        return None
    return max(seconds[stage] / rows[stage] for stage in rows)


def _state(
    scheduler: Scheduler,
    worker: DaskWorkerState,
    stages: list[PlacedStage],
    spec: GroupSpec,
) -> WorkerState:
    free = {
        name: total - worker.used_resources.get(name, 0)
        for name, total in worker.resources.items()
    }
    for stage in stages:
        task = scheduler.tasks.get(stage.spec.key)
        if task is None or task.processing_on is not worker:  # Dask counts it later
            for name, amount in stage.spec.group.resources:
                free[name] = free.get(name, 0) - amount
    # What fits an accelerator is not known here: its worker finds out as it loads.
    on_device = spec.device not in ("auto", "cpu") or "GPU" in dict(spec.resources)
    limit = None if on_device else worker.memory_limit
    return WorkerState(
        worker.address,
        dict(worker.resources),
        free,
        models_bytes(limit) if limit else None,
        worker.host,
        tuple(stage.spec.group.model.name for stage in stages),
    )


def models_bytes(limit: int) -> int:
    """Bytes that models may take under a worker's memory limit, as Dask's defaults are.

    60 % of it, and what is left below the 80 % at which Dask pauses the worker.
    """
    return max(0, min(int(0.6 * limit), int(0.8 * limit) - PROCESS_BYTES))


def candidates(
    workers: Iterable[WorkerState], resources: Resources, taken: Collection[str] = ()
) -> list[WorkerState]:
    """Return the workers that can hold a stage now, those without stages first.

    `taken` hold another stage of the same instance.
    """
    free = [w for w in workers if w.address not in taken and w.is_free(resources)]
    return sorted(free, key=lambda worker: (len(worker.holds), worker.address))


def shortage(
    workers: Collection[WorkerState],
    resources: Resources,
    needed: int,
    taken: Collection[str] = (),
) -> str:
    """Describe how many workers are missing, and who uses the others."""
    names = ", ".join(f"{name}={amount:g}" for name, amount in resources)
    able = [worker for worker in workers if worker.has(resources)]
    free = candidates(workers, resources, taken)
    own = "of its own" if needed == 1 else "of their own"
    what = f"with {names}" if resources else own
    has = f"have {names}" if resources else "could hold one"
    missing = (
        f"{count(needed, 'worker')} {what} {'is' if needed == 1 else 'are'} needed "
        f"and {len(free)} {'is' if len(free) == 1 else 'are'} free "
        f"(of {len(workers)} workers, {len(able)} {has})"
    )
    held = [
        f"{worker.address} holds {', '.join(sorted(set(worker.holds)))}"
        for worker in able
        if worker.holds and worker.address not in taken
    ]
    busy = [
        f"{worker.address} has its {names} in use by other tasks"
        for worker in able
        if not worker.holds and not worker.is_free(resources)
    ]
    return "; ".join([missing, *held, *busy])


def remedy(resources: Resources, *, several: bool) -> str:
    """Describe how to get more workers, or to do with fewer of `several`."""
    fewer = ", or pass fewer stages" if several else ""
    if not resources:
        return f"start more workers{fewer}"
    asked = " ".join(f"{name}={amount:g}" for name, amount in resources)
    start = f'start more workers with {asked} (dask worker --resources "{asked}")'
    return f"{start}{fewer}"
