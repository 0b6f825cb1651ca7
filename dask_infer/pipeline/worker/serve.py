"""The task that is a stage: it loads its layers, leaves its thread, and serves.

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
from dask_infer.pipeline.messages.group_state import Facts
from dask_infer.pipeline.messages.stage_order import StageOrder
from dask_infer.pipeline.worker.microbatch_comms import MicrobatchComms, comms_of
from dask_infer.pipeline.worker.stage import Stage
from dask_infer.pipeline.worker.stage_layers import part_of
from dask_infer.replica.cache import Replica, cache
from dask_infer.replica.setup_worker import setup_worker
from dask_infer.replica.worker_place import current_place


def serve_stage(order: bytes) -> None:
    """Be one stage until the coordinator cancels the task.

    Parameters
    ----------
    order
        The pickled `StageOrder`.
    """
    worker = get_worker()
    setup_worker(worker)
    try:
        _Service(pickle.loads(order), worker).run()
    except Exception as error:
        make_portable(error)
        raise


class _Service:
    """One stage from its load to its release."""

    def __init__(self, order: StageOrder, worker: Worker) -> None:
        self.order, self.worker = order, worker
        self.comms: MicrobatchComms = comms_of(worker)
        self.stage = Stage(
            order.instance,
            order.index,
            order.stages,
            order.epoch,
            order.window,
            self.comms.loop,
            worker.address,
            order.spec.model.label,
        )

    def run(self) -> None:
        """Serve; a replica that is stuck in a forward is replaced by a fresh one."""
        seceded = False
        try:
            stuck = True
            while stuck:
                with self._leased() as replica:
                    replica.serving = True
                    if not seceded:
                        secede()
                        seceded = True
                        self.comms.open(self.stage)
                        self._report(replica)
                    stuck = self._serve(replica)
                    # Leased: it is closed when the lease ends.
                    cache.discard(replica)
        finally:
            self.comms.close(self.stage)

    def _leased(self) -> Any:
        spec = self.order.spec
        return cache.lease(
            spec.model,
            current_place(),
            device=spec.device,
            dtype=spec.dtype,
            timeout=spec.timeout,
            part=part_of(self.order),
        )

    def _serve(self, replica: Replica) -> bool:
        wanted = is_wanted(self.worker, self.order.key)
        return self.stage.serve(
            replica, current_place(), self.order.spec.timeout, wanted
        )

    def _report(self, replica: Replica) -> None:
        """Tell the coordinator that the stage serves."""
        model = replica.loaded
        floating = model.floating
        facts = Facts(
            interface=model.interface,
            floating=None if floating is None else str(floating).rpartition(".")[2],
            dtypes=model.dtypes,
            tokens=model.token_rules(self.order.spec.method),
        )

        async def report() -> None:
            await self.worker.scheduler.infer_ready(
                instance=self.order.instance,
                index=self.order.index,
                epoch=self.order.epoch,
                facts=facts.to_message(),
            )

        sync(self.worker.loop, report)


def is_wanted(worker: Worker, key: Any) -> Callable[[], bool]:
    """Return whether a task of this worker is still to go on, as a question to ask.

    Dask cannot interrupt a thread: a cancelled task is told by its state.
    """

    def wanted() -> bool:
        task = worker.state.tasks.get(key)
        if task is None or worker.status.name not in _ALIVE:
            return False
        return task.state in ("executing", "long-running")

    return wanted


_ALIVE = ("running", "paused", "closing_gracefully")
