"""The replicas resident on a cluster, listed and freed from the client."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import pandas as pd

from dask_infer.model.towers import single_models
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
    client = current_client(client)
    if client is None:
        return _frame({"local": rows_here()})

    async def ask() -> pd.DataFrame:
        return _frame(of_living(await client.run(rows_here, on_error="return")))

    return client.sync(ask)  # type: ignore[no-any-return]


def unload(model: Any = None, client: Any = None) -> Awaitable[None] | None:
    """Free a model on all workers, or every model.

    A replica in use is freed when its last user is done; a group of workers that hold
    a model together stops serving. A later prediction loads the model again.

    Parameters
    ----------
    model
        Anything that `predict` takes; None for all models.
    client
        As of `replicas`.

    Returns
    -------
    None
        Once every worker has answered; replicas in use may still be resident then. An
        awaitable of it where the client is asynchronous.

    Raises
    ------
    TypeError, ModelLoadError
        If `model` is not something that `predict` takes, or cannot be read. A model
        that is not resident is no error.
    OSError
        If the client has lost its scheduler.
    """
    contents = None
    if model is not None:
        from dask_infer.model.recognise import recognise

        contents = [
            recognise(each.model, each.options["method"]).spec.key
            for each in single_models(model)
        ]
    client = current_client(client)
    if client is None:
        unload_here(contents)
        return None

    async def ask() -> None:
        await client.run_on_scheduler(_release, contents)
        of_living(await client.run(unload_on_worker, contents, on_error="return"))

    return client.sync(ask)  # type: ignore[no-any-return]


def of_living(answers: dict[str, Any]) -> dict[str, Any]:
    """Return the answers of workers, without those that were lost meanwhile.

    Raises what a worker raised. The connection to a lost worker fails with an
    `OSError`; what is asked must read no file, or take care of such an error itself.
    """
    found = {w: a for w, a in answers.items() if not isinstance(a, OSError)}
    for answer in found.values():
        if isinstance(answer, Exception):
            raise answer
    return found


def rows_here(dask_worker: Any = None) -> list[dict[str, Any]]:
    """List the replicas that this worker loaded."""
    cache = _cache()
    if cache is None:
        return []
    here = "local" if dask_worker is None else dask_worker.address
    return [_row(each) for each in cache.replicas() if each.worker == here]


def _row(replica: Any) -> dict[str, Any]:
    part = replica.part
    # A stage's own lease does not count: it may be idle.
    in_use = replica.leases > replica.serving
    return {
        "worker": replica.worker,
        "model": replica.spec.name,
        "label": replica.spec.label,
        "serving": replica.serving,
        "device": str(replica.device),
        "stage": None if part is None else part.stage,
        "shard": None if part is None or part.shards == 1 else part.shard,
        "bytes": replica.nbytes,
        "rows": replica.rows,
        "idle": 0.0 if in_use else time.monotonic() - replica.last_used,
        "batches": replica.sizes.describe(),
    }


def unload_here(contents: Sequence[str] | None) -> None:
    """Free the replicas of these models in this process, or of all."""
    _unload(_cache(), contents)


def _unload(owner: Any, contents: Sequence[str] | None) -> None:
    for content in [None] if contents is None else contents:
        if owner is not None:
            owner.unload(content)


def _cache() -> Any | None:
    """Return this process's cache; None where none was ever loaded.

    A task's thread may be importing the module right now.
    """
    module = sys.modules.get("dask_infer.replica.cache")
    return getattr(module, "cache", None)


async def unload_on_worker(contents: Sequence[str] | None) -> None:
    """Free replicas while the worker's event loop goes on."""
    await asyncio.to_thread(unload_here, contents)


def _release(contents: Sequence[str] | None, dask_scheduler: Any) -> None:
    """Release groups of workers that hold a model together; runs on the scheduler."""
    _unload(dask_scheduler.plugins.get(COORDINATOR), contents)


def _frame(answers: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    rows = [row for answer in answers.values() for row in answer]
    frame = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    # Not a column: it is a state that changes, of use in messages only.
    frame.attrs["batches"] = [row.get("batches", []) for row in rows]
    return frame


def current_client(given: Any = None) -> Any | None:
    """Return the client that a user gave, or that a computation would use now.

    None without a cluster.

    Raises
    ------
    TypeError
        If `given` is no client.
    OSError
        If it is closed.
    """
    if "distributed" not in sys.modules and given is None:
        return None
    from distributed import Client, default_client

    if given is None:
        try:
            return default_client()
        except ValueError:
            return None
    if not isinstance(given, Client):
        raise TypeError(
            f"client= is {type(given).__name__}; pass a distributed.Client, or nothing "
            "for the current one"
        )
    if given.status == "closed":
        raise OSError("client= is closed; pass a distributed.Client that is connected")
    return given
