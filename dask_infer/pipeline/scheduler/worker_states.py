"""The workers of a cluster as places for stages, read from the scheduler's state."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from distributed import Scheduler

from dask_infer.pipeline.scheduler.group import Group, Placed
from dask_infer.pipeline.scheduler.placement import WorkerState, models_bytes
from dask_infer.spec import GroupSpec


def worker_states(
    scheduler: Scheduler, groups: Iterable[Group], spec: GroupSpec
) -> list[WorkerState]:
    """Return what each worker that is heard of has, has free, and holds.

    Parameters
    ----------
    groups
        The groups whose stages the workers hold.
    spec
        The group that is to be placed.
    """
    placed: dict[str, list[Placed]] = {}
    for group in groups:
        for instance in group.instances:
            for stage in instance.placed.values():
                placed.setdefault(stage.address, []).append(stage)
    return [
        _place(scheduler, worker, placed.get(worker.address, []), spec)
        for worker in scheduler.running
        if not is_silent(scheduler, worker.address, spec.patience.stall)
    ]


def is_silent(scheduler: Scheduler, address: str, seconds: float) -> bool:
    """Whether a worker sent no heartbeat for so long: it blocks its loop, or froze."""
    worker = scheduler.workers.get(address)
    return worker is not None and time.time() - worker.last_seen > seconds


def _place(
    scheduler: Scheduler, worker: Any, stages: list[Placed], spec: GroupSpec
) -> WorkerState:
    free = {
        name: total - worker.used_resources.get(name, 0)
        for name, total in worker.resources.items()
    }
    for stage in stages:
        task = scheduler.tasks.get(stage.order.key)
        if task is None or task.processing_on is not worker:  # counted in a moment
            for name, amount in stage.order.spec.resources:
                free[name] = free.get(name, 0) - amount
    # What fits an accelerator is not known here: its worker says so as it loads.
    on_device = spec.device not in ("auto", "cpu") or "GPU" in dict(spec.resources)
    limit = None if on_device else worker.memory_limit
    return WorkerState(
        worker.address,
        dict(worker.resources),
        free,
        models_bytes(limit) if limit else None,
        worker.host,
        tuple(stage.order.spec.model.name for stage in stages),
    )
