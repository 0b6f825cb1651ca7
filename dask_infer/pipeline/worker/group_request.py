"""The task that asks for a group, before any partition that is fed to it starts.

Partition tasks depend on it, so feeders cannot hold every thread while a stage waits
for one: this task leaves its thread while it waits. As long as its key is alive the
group has a user.
"""

from __future__ import annotations

import pickle
import threading

from distributed import Worker, secede
from distributed.utils import sync

from dask_infer._dask import current_task_key
from dask_infer.errors import PlacementError
from dask_infer.pipeline.scheduler.coordinator import GroupCoordinator
from dask_infer.pipeline.worker.group_client import GroupClient
from dask_infer.pipeline.worker.measure import measured
from dask_infer.pipeline.worker.microbatch_comms import comms_of
from dask_infer.replica.setup_worker import setup_worker
from dask_infer.replica.worker_place import current_worker
from dask_infer.spec import GroupSpec
from dask_infer.spec.group_spec import COORDINATOR


def request_group(spec: GroupSpec) -> str:
    """Ask for a group and wait until it serves; return its key.

    Raises
    ------
    PlacementError
        If it cannot be placed; what its load raised where that failed.
    """
    worker = grouped_worker(spec)
    setup_worker(worker)
    leave_thread()
    client = GroupClient(comms_of(worker), spec)

    async def knows() -> bool:
        await _ensure_coordinator(worker)
        return bool(await worker.scheduler.infer_knows(key=spec.key))

    async def wait() -> None:
        await client.open(current, is_request=True, measured=told)
        await client.close(current)

    current = current_task_key()
    known = sync(worker.loop, knows)
    told = None if known or spec.chain is None else pickle.dumps(measured(spec))
    sync(worker.loop, wait)
    return spec.key


def grouped_worker(spec: GroupSpec) -> Worker:
    """Return the worker of the calling thread, without which there are no groups."""
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


def leave_thread() -> None:
    """Let another task have this thread; twice is as good as once."""
    if getattr(_left, "key", None) != current_task_key():
        _left.key = current_task_key()
        secede()


async def _ensure_coordinator(worker: Worker) -> None:
    await worker.scheduler.register_scheduler_plugin(
        plugin=pickle.dumps(GroupCoordinator()), name=COORDINATOR, idempotent=True
    )
