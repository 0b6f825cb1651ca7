"""The layout that ``parallel="auto"`` takes, chosen in the task of the group request.

Not when the call is built: only now it is known which workers there are. Nor on the
scheduler: to compare all numbers of stages takes up to a second.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from distributed.utils import sync

from dask_infer.device.resolve_device import resolve_device
from dask_infer.pipeline.choice.gather_facts import Gatherer, keys_of
from dask_infer.pipeline.scheduler.group_table import TOPIC
from dask_infer.pipeline.worker.measure import timed_chain
from dask_infer.plan.layouts.alternative import Alternative
from dask_infer.plan.layouts.choose import alternatives, choose, nothing_fits, reason
from dask_infer.replica.measured import recall_each
from dask_infer.replica.worker_place import current_worker
from dask_infer.spec import AutoSpec, GroupSpec, LayerGroups

logger = logging.getLogger(__name__)

#: Seconds that the timing of a model's blocks takes: it is not worth more.
MEASURING = 2.0


def choose_layout(auto: AutoSpec) -> GroupSpec | LayerGroups | None:
    """Return a job's group, or its layer groups; None where it takes the model whole.

    Raises
    ------
    PlacementError
        If no layout fits; names what refuses each.
    """
    worker = current_worker()
    workers = {} if worker is None else _workers(worker)
    gatherer = Gatherer(auto, workers, recall_each(keys_of(auto)))
    found = alternatives(gatherer.gather())
    chosen = choose(found)
    name = auto.group.model.name
    if _is_worth_measuring(auto, gatherer, found, chosen):
        chain = timed_chain(auto.group)
        kind = resolve_device(auto.group.device).torch_device.type
        found = alternatives(gatherer.gather(chain, kind))
        chosen = choose(found)
    if chosen is None:
        raise nothing_fits(name, found)
    line = f'model "{name}": parallel="auto" takes {reason(chosen, found)}'
    logger.info("%s", line)
    if worker is not None:
        worker.log_event(TOPIC, {"group": auto.group.key, "event": line})
    return spread_of(auto.group, chosen)


def spread_of(group: GroupSpec, chosen: Alternative) -> GroupSpec | LayerGroups | None:
    """Return what a call that asks for a chosen layout has in its job."""
    if chosen.kind == "data":
        return None
    if chosen.kind == "sweep":
        assert group.chain is not None
        return LayerGroups(group.chain, chosen.layout.stages)
    cut = chosen.kind in ("stages", "shards")
    return replace(
        group,
        layout=chosen.layout,
        resources=chosen.resources,
        chain=group.chain if cut else None,
    )


def _workers(worker: Any) -> dict[str, Any]:
    async def ask() -> dict[str, Any]:
        return await worker.scheduler.identity(n_workers=-1)  # type: ignore[no-any-return]

    workers: dict[str, Any] = sync(worker.loop, ask)["workers"]
    return workers


def _is_worth_measuring(
    auto: AutoSpec,
    gatherer: Gatherer,
    found: list[Alternative],
    chosen: Alternative | None,
) -> bool:
    """Whether seconds of blocks can change the choice for more than they take."""
    if auto.group.chain is None or chosen is None:
        return False
    if gatherer.is_measured:
        return False
    if sum(not each.refused for each in found) == 1:
        return False
    # Nothing is faster than whole replicas but by the time of their load.
    return chosen.kind != "data" or chosen.load > MEASURING
