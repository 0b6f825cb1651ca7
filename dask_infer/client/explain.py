"""What each layout of a call would take: facts gathered on the client, nothing run."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import replace
from math import ceil, prod
from typing import Any

import pandas as pd
import pyarrow as pa
from distributed.comm.addressing import get_address_host

from dask_infer._dask import count_partitions, count_rows_at_most
from dask_infer.batch.tensor.tensor_dtype import TensorDtype
from dask_infer.client.job_builder import build_job
from dask_infer.client.layout_plan import Plan
from dask_infer.client.request import Request
from dask_infer.errors import PlacementError
from dask_infer.pipeline.choice.gather_facts import Gatherer, keys_of
from dask_infer.plan.layouts.choose import EXECUTED, alternatives, choose
from dask_infer.plan.layouts.job_facts import JobFacts
from dask_infer.plan.partition_sizes import partition_warnings
from dask_infer.replica.measured import recall_each
from dask_infer.replica.residents import current_client
from dask_infer.spec import AutoSpec, Job

#: Hosts that are asked what they remember.
ASKED = 8


def explain(request: Request, expr: Any) -> Plan | Awaitable[Plan]:
    """Return the plan of a call over the rows of `expr`.

    Parameters
    ----------
    request
        The call, with ``parallel="auto"``.
    """
    job, _ = build_job(request, expr)
    if not isinstance(job, Job):
        raise ValueError(
            f"explain() compares the layouts of one model, not of {job.name}: pass the "
            "models one by one; each may have parallel= of its own"
        )
    assert job.auto is not None
    auto = replace(
        job.auto,
        rows=count_rows_at_most(expr),
        partitions=count_partitions(expr),
        rate_key=job.rate_key,
    )
    client = current_client()
    if client is None:
        return _plan(auto, {}, recall_each(keys_of(auto)), row_bytes(expr._meta))
    if not client.asynchronous:
        plan: Plan = client.sync(_ask, client, auto, row_bytes(expr._meta))
        return plan
    return _ask(client, auto, row_bytes(expr._meta))


async def _ask(client: Any, auto: AutoSpec, row: int) -> Plan:
    identity = await client.scheduler.identity(n_workers=-1)
    workers = identity["workers"]
    if not workers:
        raise PlacementError("the cluster has no worker to plan for: start workers")
    hosts: dict[str, str] = {}
    for address in workers:
        hosts.setdefault(get_address_host(address), address)
    asked = list(hosts.values())[:ASKED]
    answers = await client.run(recall_each, keys_of(auto), workers=asked)
    return _plan(auto, workers, _together(answers), row)


def _together(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the hosts know: of each key one answer, and the fewest cores."""
    known: dict[str, Any] = {}
    for answer in answers.values():
        known |= answer
    return {**known, "cores": min(each["cores"] for each in answers.values())}


def _plan(
    auto: AutoSpec, workers: Mapping[str, Any], known: Mapping[str, Any], row: int
) -> Plan:
    gatherer = Gatherer(auto, workers, known)
    facts = gatherer.gather()
    found = alternatives(facts)
    chosen = choose(found)
    local = chosen is None or chosen.kind == "data"
    notes = _size_notes(auto, workers, facts, row, local) if workers else []
    if unable := sorted({a.kind for a in found if not a.refused} - EXECUTED):
        notes.append(f"{', '.join(unable)}: projected, and not run by this version")
    return Plan(auto.group.model.name, found, chosen, gatherer.shown, notes)


def _size_notes(
    auto: AutoSpec, workers: Mapping[str, Any], facts: JobFacts, row: int, local: bool
) -> list[str]:
    """Return what is wrong with the size of the partitions, as far as it is known."""
    limits = [each["memory_limit"] for each in workers.values()]
    known = auto.rows is not None
    return partition_warnings(
        facts.rows,
        facts.partitions,
        len(workers),
        facts.row_seconds + facts.prepare_seconds if known else None,
        row if known else None,
        min(limits) - facts.nbytes if all(limits) else None,
        max(each["nthreads"] for each in workers.values()),
        local,
    )


def row_bytes(meta: pd.DataFrame | pd.Series) -> int:
    """Return the bytes of a row's columns of fixed size; texts are not counted."""
    columns = meta.to_frame() if isinstance(meta, pd.Series) else meta
    return sum(_dtype_bytes(dtype) for dtype in columns.dtypes)


def _dtype_bytes(dtype: Any) -> int:
    arrow, size = getattr(dtype, "pyarrow_dtype", None), 1
    if isinstance(dtype, TensorDtype):
        return dtype.value.itemsize * prod(each or 0 for each in dtype.shape)
    if arrow is None:
        return int(dtype.itemsize) if pd.api.types.is_numeric_dtype(dtype) else 0
    while pa.types.is_fixed_size_list(arrow):
        size, arrow = size * arrow.list_size, arrow.value_type
    return ceil(size * arrow.bit_width / 8) if pa.types.is_primitive(arrow) else 0
