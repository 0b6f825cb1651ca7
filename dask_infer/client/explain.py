"""What each layout of a call would take: facts gathered on the client, nothing run."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any

from distributed.comm.addressing import get_address_host

from dask_infer._dask import count_partitions, count_rows_at_most
from dask_infer.client.job_builder import build_job
from dask_infer.client.layout_plan import Plan
from dask_infer.client.request import Request
from dask_infer.errors import PlacementError
from dask_infer.pipeline.choice.gather_facts import Gatherer, keys_of
from dask_infer.plan.layouts.choose import alternatives, choose
from dask_infer.replica.measured import recall_each
from dask_infer.replica.residents import current_client
from dask_infer.spec import AutoSpec

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
    assert job.auto is not None
    auto = replace(
        job.auto,
        rows=count_rows_at_most(expr),
        partitions=count_partitions(expr),
        rate_key=job.rate_key,
    )
    client = current_client()
    if client is None:
        return _plan(auto, {}, recall_each(keys_of(auto)))
    if not client.asynchronous:
        plan: Plan = client.sync(_ask, client, auto)
        return plan
    return _ask(client, auto)


async def _ask(client: Any, auto: AutoSpec) -> Plan:
    identity = await client.scheduler.identity(n_workers=-1)
    workers = identity["workers"]
    if not workers:
        raise PlacementError("the cluster has no worker to plan for: start workers")
    hosts: dict[str, str] = {}
    for address in workers:
        hosts.setdefault(get_address_host(address), address)
    asked = list(hosts.values())[:ASKED]
    answers = client.run(recall_each, keys_of(auto), workers=asked) if asked else {}
    if inspect.isawaitable(answers):
        answers = await answers
    return _plan(auto, workers, _together(answers))


def _together(answers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the hosts know: of each key one answer, and the fewest cores."""
    known: dict[str, Any] = {}
    for answer in answers.values():
        known |= answer
    if answers:
        known["cores"] = min(answer["cores"] for answer in answers.values())
    return known


def _plan(auto: AutoSpec, workers: Mapping[str, Any], known: Mapping[str, Any]) -> Plan:
    gatherer = Gatherer(auto, workers, known)
    found = alternatives(gatherer.gather())
    return Plan(auto.group.model.name, found, choose(found), gatherer.shown)
