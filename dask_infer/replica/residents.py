"""What is resident on a cluster, told and let go of from the client."""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import Awaitable
from typing import Any

import pandas as pd

from dask_infer.spec.group_spec import COORDINATOR

COLUMNS = {
    "worker": "str",
    "model": "str",
    "device": "str",
    "stage": "Int64",
    "shard": "Int64",
    "bytes": "int64",
    "rows": "int64",
    "idle": "float64",
}


def replicas(client: Any = None) -> pd.DataFrame | Awaitable[pd.DataFrame]:
    """List the models resident on the workers.

    Parameters
    ----------
    client
        A `distributed.Client`; by default the current one, or this process where
        there is none.

    Returns
    -------
    pandas.DataFrame
        One row a replica: `worker` (its address), `model`, `device`, `stage` and
        `shard` (missing for data-parallel), `bytes`, `rows` served so far, `idle`
        seconds. Its ``attrs["batches"]`` has a list of texts a row: the sizes of
        batches that the replica has found, or is trying. An awaitable of it where the
        client is asynchronous.
    """
    return _everywhere(client, rows_here, (), _frame)  # type: ignore[no-any-return]


def unload(model: Any = None, client: Any = None) -> Awaitable[None] | None:
    """Free a model on all workers, or every model, once its users are done.

    Parameters
    ----------
    model
        Anything that `predict` takes; None for all models.
    client
        As of `replicas`.
    """
    content = None
    if model is not None:
        from dask_infer.model.recognise import recognise

        content = recognise(model).spec.key
    client = client or _current_client()
    groups = None if client is None else client.run_on_scheduler(_release, content)
    freed = _everywhere(
        client, unload_on_worker, (content,), lambda answers: None, unload_here
    )
    if not inspect.isawaitable(freed):
        return None

    async def both() -> None:
        for later in (groups, freed):
            if later is not None:
                await later

    return both()


def rows_here(dask_worker: Any = None) -> list[dict[str, Any]]:
    """List the replicas that this worker loaded."""
    cache = _cache()
    if cache is None:
        return []
    here = "local" if dask_worker is None else dask_worker.address
    now = time.monotonic()
    return [
        {
            "worker": replica.worker,
            "model": replica.spec.name,
            "label": replica.spec.label,
            "serving": replica.serving,
            "device": str(replica.device),
            "stage": None if replica.part is None else replica.part.stage,
            "shard": None,
            "bytes": replica.nbytes,
            "rows": replica.rows,
            "idle": 0.0 if _in_use(replica) else now - replica.last_used,
            "batches": replica.sizes.describe(),
        }
        for replica in cache.replicas()
        if replica.worker == here
    ]


def _in_use(replica: Any) -> bool:
    """Whether it runs a batch, or may: a stage's lease alone tells nothing."""
    return bool(replica.leases > replica.serving)


def unload_here(content: str | None) -> None:
    """Let go of replicas of this process."""
    cache = _cache()
    if cache is not None:
        cache.unload(content)


def _cache() -> Any | None:
    """Return this process's cache; None where nothing was ever loaded.

    A task's thread may be importing the module right now.
    """
    module = sys.modules.get("dask_infer.replica.cache")
    return getattr(module, "cache", None)


async def unload_on_worker(content: str | None) -> None:
    """Let go of replicas while the worker's event loop goes on."""
    await asyncio.to_thread(unload_here, content)


def _release(content: str | None, dask_scheduler: Any) -> None:
    """Let groups of workers that hold a model together go; runs on the scheduler."""
    coordinator = dask_scheduler.plugins.get(COORDINATOR)
    if coordinator is not None:
        coordinator.unload(content)


def _frame(answers: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    rows = [row for answer in answers.values() for row in answer]
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    # No column: what a replica is stands in the table, how it fares beside it.
    frame.attrs["batches"] = [row.get("batches", []) for row in rows]
    return frame


def _everywhere(
    client: Any, function: Any, args: tuple[Any, ...], combine: Any, here: Any = None
) -> Any:
    """Run `function` on every worker, or `here` in this process without a client."""
    client = client or _current_client()
    if client is None:
        return combine({"local": (here or function)(*args)})
    answers = client.run(function, *args)
    if not isinstance(answers, dict):

        async def later() -> Any:
            return combine(await answers)

        return later()
    return combine(answers)


def _current_client() -> Any | None:
    if "distributed" not in sys.modules:
        return None
    from distributed import default_client

    try:
        return default_client()
    except ValueError:
        return None
