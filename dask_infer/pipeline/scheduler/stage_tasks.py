"""The Dask tasks that are stages, submitted and cancelled on the scheduler.

They are submitted through a client of their own: tasks of a user's client or of a
feeder end with it (distributed 2026.8.0).
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

from distributed import Client, Scheduler

from dask_infer.pipeline.scheduler.group import PlacedStage
from dask_infer.spec.group_spec import COORDINATOR

#: The urgency of stage tasks, so that they start before queued partitions.
PRIORITY = 1000


class StageTasks:
    """The stage tasks of a cluster."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._cancelling: set[asyncio.Future[Any]] = set()

    def __repr__(self) -> str:
        return f"<StageTasks of {self.scheduler.address}>"

    async def run(self, placed: PlacedStage) -> Exception | None:
        """Run a stage's task until it ends, which it should not by itself.

        Returns what it raised; None where it was cancelled or its worker is gone.
        """
        from dask_infer.pipeline.worker.serve_stage import serve_stage

        client = await self._connected()
        spec = placed.spec
        if placed.cancelled:
            return None
        placed.future = client.submit(
            serve_stage,
            pickle.dumps(spec),
            key=spec.key,
            workers=[placed.address],
            allow_other_workers=False,
            resources=dict(spec.group.resources) or None,
            priority=PRIORITY,
            retries=0,
            pure=False,
        )
        try:
            await placed.future
        except asyncio.CancelledError:
            if placed.future.status != "cancelled":
                raise  # this coroutine, not the stage
        except Exception as raised:
            # A cancelled one is no asyncio.CancelledError (distributed 2026.8.0).
            return None if placed.future.cancelled() else raised
        return None

    def cancel(self, placed: PlacedStage) -> None:
        """Cancel a stage's task; its thread finds out by itself."""
        placed.cancelled = True
        if placed.future is None:
            return
        cancelling = placed.future.cancel()
        if asyncio.iscoroutine(cancelling):
            task = asyncio.ensure_future(cancelling)
            self._cancelling.add(task)
            task.add_done_callback(self._cancelling.discard)

    async def close(self) -> None:
        """Close the client."""
        if self._client is not None:
            await self._client.close()

    async def _connected(self) -> Client:
        async with self._connecting:
            alive = ("running", "connecting")
            if self._client is None or self._client.status not in alive:
                self._client = await Client(
                    self.scheduler.address,
                    asynchronous=True,
                    set_as_default=False,
                    security=_as_client(self.scheduler.security),
                    name=COORDINATOR,
                )
            return self._client


def _as_client(security: Any) -> Any:
    """Return the security of a client on the scheduler, with the scheduler's own.

    ``dask scheduler --tls-cert`` sets no client's certificate (distributed 2026.8.0).
    """
    if security.tls_client_cert:
        return security
    own = copy.copy(security)
    own.tls_client_cert = security.tls_scheduler_cert
    own.tls_client_key = security.tls_scheduler_key
    return own
