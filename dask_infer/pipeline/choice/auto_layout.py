"""The layout that ``parallel="auto"`` takes, chosen in the task of the group request.

Not when the call is built: only now it is known which workers there are. Nor on the
scheduler: to compare all numbers of stages takes up to a second.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distributed.utils import sync

from dask_infer.device.resolve_device import resolve_device
from dask_infer.pipeline.choice.gather_facts import Gatherer, keys_of
from dask_infer.pipeline.choice.set_groups import beside_groups
from dask_infer.pipeline.scheduler.group_table import TOPIC
from dask_infer.pipeline.worker.measure import timed_chain
from dask_infer.plan.layouts.alternative import Alternative
from dask_infer.plan.layouts.choose import nothing_fits, reason
from dask_infer.plan.layouts.choose_together import Choice, choose_together
from dask_infer.replica.measured import recall_each
from dask_infer.replica.worker_place import current_worker
from dask_infer.spec import AutoSpec, ChosenLayout, GroupSpec, LayerGroups

logger = logging.getLogger(__name__)

#: Seconds that the timing of a model's blocks takes: it is not worth more.
MEASURING = 2.0


def choose_layouts(
    specs: Sequence[GroupSpec | AutoSpec],
) -> tuple[ChosenLayout, ...]:
    """Return what each model of a job is spread as; None where a process has it whole.

    `specs` are what the layouts are chosen from, and the groups whose layout is set.

    Raises
    ------
    PlacementError
        If no layout of a model fits; names what refuses each.
    """
    autos = [spec for spec in specs if isinstance(spec, AutoSpec)]
    groups = [spec for spec in specs if isinstance(spec, GroupSpec)]
    worker = current_worker()
    workers: dict[str, Any] = {}
    if worker is not None:
        identity = sync(worker.loop, worker.scheduler.identity, n_workers=-1)
        workers = beside_groups(identity["workers"], groups)
    known = recall_each([key for auto in autos for key in keys_of(auto)])
    gatherers = [Gatherer(auto, workers, known) for auto in autos]
    facts = [gatherer.gather() for gatherer in gatherers]
    choices = choose_together(facts)
    measures = list(map(_is_worth_measuring, gatherers, choices))
    for number, gatherer in enumerate(gatherers):
        if measures[number]:
            group = gatherer.group
            kind = resolve_device(group.device).torch_device.type
            facts[number] = gatherer.gather(timed_chain(group), kind)
    if any(measures):
        choices = choose_together(facts)
    chosen: list[ChosenLayout] = []
    for auto, choice in zip(autos, choices, strict=True):
        name = auto.group.model.name
        if choice.chosen is None:
            raise nothing_fits(name, choice.found)
        why = reason(choice.chosen, choice.found)
        line = f'model "{name}": parallel="auto" takes {why}'
        logger.info("%s", line)
        if worker is not None:
            worker.log_event(TOPIC, {"group": auto.group.key, "event": line})
        chosen.append(spread_of(auto.group, choice.chosen))
    found = iter(chosen)
    return tuple(s if isinstance(s, GroupSpec) else next(found) for s in specs)


def spread_of(group: GroupSpec, chosen: Alternative) -> ChosenLayout:
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


def _is_worth_measuring(gatherer: Gatherer, choice: Choice) -> bool:
    """Whether seconds of blocks can change the choice for more than they take."""
    chosen = choice.chosen
    if gatherer.group.chain is None or chosen is None or gatherer.is_measured:
        return False
    if sum(not each.refused for each in choice.found) == 1:
        return False
    # Nothing is faster than whole replicas but by the time of their load.
    return chosen.kind != "data" or chosen.load > MEASURING
