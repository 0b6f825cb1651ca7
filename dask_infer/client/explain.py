"""What each layout of a call would take: facts gathered on the client, nothing run."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from math import ceil, prod
from typing import Any

import pandas as pd
import pyarrow as pa
from distributed.comm.addressing import get_address_host

from dask_infer._dask import count_partitions, count_rows_at_most
from dask_infer.batch.tensor.tensor_dtype import TensorDtype
from dask_infer.client.job_builder import build_job
from dask_infer.client.layout_plan import Plan, TowersPlan
from dask_infer.client.request import Request
from dask_infer.errors import PlacementError
from dask_infer.pipeline.choice.gather_facts import Gatherer, keys_of
from dask_infer.pipeline.choice.set_groups import beside_groups
from dask_infer.plan.layouts.choose_together import choose_together, seconds_together
from dask_infer.plan.layouts.job_facts import JobFacts
from dask_infer.plan.partition_sizes import partition_warnings
from dask_infer.replica.measured import recall_each
from dask_infer.replica.residents import current_client, of_living
from dask_infer.spec import AnyJob, AutoSpec, Job, Layout

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
    rows, partitions = count_rows_at_most(expr), count_partitions(expr)
    autos = {
        name: replace(
            model.auto, rows=rows, partitions=partitions, rate_key=model.rate_key
        )
        for name, model in _by_name(job).items()
        if model.auto is not None
    }
    keys = [key for auto in autos.values() for key in keys_of(auto)]
    plan = functools.partial(_plan, job, autos, row_bytes(expr._meta))
    client = current_client()
    if client is None:
        return plan({}, recall_each(keys))
    if client.asynchronous:
        return _ask(client, keys, plan)
    answer: Plan = client.sync(_ask, client, keys, plan)
    return answer


def _by_name(job: AnyJob) -> dict[str, Job]:
    """Return the models of a job by the names that the user gave the towers.

    Where two would have one name, such as a head and a tower "head", they have titles.
    """
    short = [title.replace('tower "', "").replace('"', "") for _, title in job.parts]
    return {
        name if short.count(name) == 1 else title: model
        for (model, title), name in zip(job.parts, short, strict=True)
    }


async def _ask(client: Any, keys: list[str], plan: Callable[..., Plan]) -> Plan:
    """Plan for a cluster's workers, with what their hosts remember under the keys."""
    workers = (await client.scheduler.identity(n_workers=-1))["workers"]
    if not workers:
        raise PlacementError("the cluster has no worker to plan for: start workers")
    hosts: dict[str, str] = {}
    for address in workers:
        hosts.setdefault(get_address_host(address), address)
    asked = list(hosts.values())[:ASKED]
    answers = of_living(
        await client.run(recall_each, keys, workers=asked, on_error="return")
    )
    if not answers:  # all were lost meanwhile: others are there, or none
        return await _ask(client, keys, plan)
    return plan(workers, _together(answers))


def _plan(
    job: AnyJob,
    autos: Mapping[str, AutoSpec],
    row: int,
    workers: Mapping[str, Any],
    known: Mapping[str, Any],
) -> Plan:
    """Return the plan of one model, or of several.

    Of those in `autos` layouts are compared, the others have one; `row` are the bytes
    of a row.
    """
    groups = [m.group for m in job.models if m.group is not None]
    left = beside_groups(workers, groups)
    gatherers = [Gatherer(auto, left, known) for auto in autos.values()]
    facts = [gatherer.gather() for gatherer in gatherers]
    choices = choose_together(facts)
    plans = {}
    for name, gatherer, each, choice in zip(
        autos, gatherers, facts, choices, strict=True
    ):
        model, chosen = gatherer.group.model.name, choice.chosen
        local = chosen is None or chosen.kind == "data"
        notes = _size_notes(gatherer.auto, workers, each, row, local)
        plans[name] = Plan(model, choice.found, chosen, gatherer.shown, notes)
    if isinstance(job, Job):
        (plan,) = plans.values()
        return plan
    parts = max((each.partitions for each in facts), default=1)
    seconds = seconds_together(choices, parts)
    return TowersPlan(job.name, plans, seconds, _set_layouts(job))


def _set_layouts(job: AnyJob) -> list[str]:
    """Return where the models run whose layout is not chosen."""
    found = []
    for name, model in _by_name(job).items():
        if model.auto is not None or not model.token:  # chosen, or a function of ours
            continue
        where = "in each process that has rows"
        if model.sweep is not None:
            layout = Layout(stages=model.sweep.stages, sweep=True)
            where = f"parallel={layout.short()}"
        elif model.group is not None:
            where = f"parallel={model.group.layout.short()}"
            if model.group.resources:
                where += f", resources={dict(model.group.resources)}"
        found.append(f"{name}: {where}; not compared")
    return found


def _together(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the hosts know: of each key one answer, and the fewest cores."""
    known: dict[str, Any] = {}
    for answer in answers.values():
        known |= answer
    return {**known, "cores": min(each["cores"] for each in answers.values())}


def _size_notes(
    auto: AutoSpec, workers: Mapping[str, Any], facts: JobFacts, row: int, local: bool
) -> list[str]:
    """Return what is wrong with the size of the partitions, as far as it is known."""
    if not workers:
        return []
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
