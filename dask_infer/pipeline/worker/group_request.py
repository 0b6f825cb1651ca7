"""The task that asks for a group, before any partition that is fed to it starts.

Partition tasks depend on it, so feeders cannot hold every thread while a stage waits
for one: this task leaves its thread while it waits. As long as Dask keeps its key, the
group has a user.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Sequence

from distributed import Worker, secede
from distributed.utils import sync

from dask_infer._dask import current_task_key, is_task_thread
from dask_infer.errors import PlacementError
from dask_infer.pipeline.scheduler.coordinator import GroupCoordinator
from dask_infer.pipeline.worker.group_client import GroupClient
from dask_infer.pipeline.worker.measure import timed_chain
from dask_infer.pipeline.worker.microbatch_comms import comms_of
from dask_infer.plan.facts import ChainFacts
from dask_infer.replica.setup_worker import setup_worker
from dask_infer.replica.worker_place import current_worker
from dask_infer.spec import GroupSpec
from dask_infer.spec.group_spec import COORDINATOR


def request_groups(specs: Sequence[GroupSpec]) -> None:
    """Ask for the groups of one job and wait until all serve.

    Workers are found for all of them or for none: two jobs that each held a part of
    what they need would wait for each other.

    Raises
    ------
    PlacementError
        If one cannot be placed; what its load raised where that failed.
    """
    worker = worker_for(specs[0])
    setup_worker(worker)
    leave_thread()
    user = current_task_key()

    async def unmeasured() -> list[GroupSpec]:
        await worker.scheduler.register_scheduler_plugin(
            plugin=pickle.dumps(GroupCoordinator()), name=COORDINATOR, idempotent=True
        )
        knows = worker.scheduler.infer_knows
        return [s for s in specs if s.is_divided and not await knows(key=s.key)]

    async def wait(chains: dict[str, ChainFacts]) -> None:
        wanted = {"specs": pickle.dumps(specs), "chains": pickle.dumps(chains)}
        await worker.scheduler.infer_reserve(**wanted, user=user)
        for spec in specs:
            client = GroupClient(comms_of(worker), spec)
            await client.open(user, is_request=True)
            await client.close(user)

    measured = sync(worker.loop, unmeasured)
    sync(worker.loop, wait, {spec.key: timed_chain(spec) for spec in measured})


def worker_for(spec: GroupSpec) -> Worker:
    """Return the worker of the calling thread; groups need one."""
    worker: Worker | None = current_worker()
    if worker is None:
        raise PlacementError(
            f'model "{spec.model.name}" is to live on workers of its own, which needs '
            "a distributed client: start one (distributed.Client()), or leave out "
            "parallel= and resources="
        )
    return worker


#: The task for which the calling thread left Dask's pool last.
_left = threading.local()


def may_leave_thread() -> bool:
    """Whether the calling thread is of Dask's pool, and its task has not left it."""
    return is_task_thread() and getattr(_left, "key", None) != current_task_key()


def leave_thread() -> None:
    """Let another task have this thread; a second call does nothing."""
    if may_leave_thread():
        _left.key = current_task_key()
        secede()
