"""The Dask task of a stage, or a shard of it: it loads, leaves its thread, serves.

It holds its Dask resources until it is cancelled: a long-running task keeps them
(distributed 2026.8.0), so other work that wants them waits and the dashboard shows who
has them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from distributed import Worker, get_worker, secede
from distributed.utils import sync

from dask_infer.errors import make_portable
from dask_infer.pipeline.messages.group_state import ModelFacts
from dask_infer.pipeline.messages.stage_spec import StageSpec
from dask_infer.pipeline.worker.microbatch_comms import comms_of
from dask_infer.pipeline.worker.stage_server import StageServer
from dask_infer.replica.cache import Replica, cache
from dask_infer.replica.setup_worker import setup_worker
from dask_infer.replica.worker_place import current_place


def serve_stage(spec: bytes) -> None:
    """Serve a pickled `StageSpec` until the coordinator cancels the task."""
    worker = get_worker()
    setup_worker(worker)
    try:
        _serve(pickle.loads(spec), worker)
    except Exception as error:
        make_portable(error)
        raise


def _serve(spec: StageSpec, worker: Worker) -> None:
    """Serve; a replica that is stuck in a forward is replaced by a fresh one."""
    comms, group, layers = comms_of(worker), spec.group, spec.layers
    stage = StageServer(spec, comms.loop, worker.address, comms.call)
    whole = layers.chain is None and layers.shards == 1
    seceded, stuck = False, True
    try:
        while stuck:
            with cache.lease(
                group.model,
                current_place(),
                device=group.device,
                dtype=group.dtype,
                timeout=group.timeout,
                part=None if whole else layers,
            ) as replica:
                replica.serving = True
                if not seceded:
                    secede()
                    seceded = True
                    comms.open(stage)
                    _report(spec, worker, replica)
                wanted = is_wanted(worker, spec.key)
                stuck = stage.serve(replica, current_place(), group.timeout, wanted)
                # It is closed when the lease ends.
                cache.discard(replica)
    finally:
        comms.close(stage)


def _report(spec: StageSpec, worker: Worker, replica: Replica) -> None:
    """Report to the coordinator that the stage serves."""
    model = replica.loaded
    floating = model.floating
    facts = ModelFacts(
        interface=model.interface,
        floating=None if floating is None else str(floating).rpartition(".")[2],
        dtypes=model.dtypes,
        tokens=model.token_rules(spec.group.method),
        kind=replica.device.torch_device.type,
    )
    sync(
        worker.loop,
        worker.scheduler.infer_ready,
        instance=spec.instance,
        slot=spec.slot,
        epoch=spec.epoch,
        facts=pickle.dumps(facts),
    )


def is_wanted(worker: Worker, key: Any) -> Callable[[], bool]:
    """Return a function that says whether Dask still wants a task of this worker.

    Dask cannot interrupt a thread: a cancelled task is known by its state.
    """

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        if task is None or worker.status.name not in _ALIVE:
            return False
        return task.state in ("executing", "long-running")

    return wanted


_ALIVE = ("running", "paused", "closing_gracefully")
