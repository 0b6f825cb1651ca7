"""The workers that are left where the call sets the layout of some of its models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dask_infer.errors import PlacementError
from dask_infer.model.runtime.stage_model import read_chain
from dask_infer.pipeline.choice.gather_facts import Gatherer
from dask_infer.pipeline.worker.measure import chain_facts, uncut_chain
from dask_infer.plan.facts import BlockFacts, WorkerFacts
from dask_infer.plan.layouts.shards import plan_layout
from dask_infer.spec import AutoSpec, GroupSpec


def beside_groups(
    workers: Mapping[str, Any], groups: Sequence[GroupSpec]
) -> dict[str, Any]:
    """Return the scheduler's answer about each worker without what groups take there.

    `groups` are those of the job whose layout is set. Of replicas that are not counted
    the first is: the others share what is left.
    """
    left = dict(workers)
    # Those that can be on few workers choose first, as they do when they are placed.
    for group in sorted(groups, key=lambda group: -len(group.resources)):
        for address in _workers_of(group, left):
            info = left[address]
            free = Counter(info.get("free", info["resources"]))
            free.subtract(dict(group.resources))
            left[address] = {**info, "free": free, "holds_group": True}
    return left


def _workers_of(group: GroupSpec, workers: Mapping[str, Any]) -> list[str]:
    """Return the workers of a group; none where it does not fit, as it will say."""
    gatherer = Gatherer(AutoSpec(group), workers, {})
    facts = [gatherer.worker(each, group.resources) for each in gatherer.info]
    # Whatever their speed, as they are placed.
    able = [WorkerFacts(w.address, w.memory, host=w.host) for w in facts if w.holds]
    first = tuple(worker.address for worker in able[:1])
    if group.is_divided:
        try:
            first = plan_layout(group.layout, _blocks(group), able).workers
        except PlacementError:
            return []
    others = [worker.address for worker in able if worker.address not in first]
    wanted = group.layout.replicas
    replicas = 1 if wanted == "auto" else wanted
    return [*first, *others][: replicas * len(first)]


def _blocks(group: GroupSpec) -> tuple[BlockFacts, ...]:
    if group.chain is None:
        return uncut_chain(group).blocks
    return chain_facts(read_chain(group.chain), None).blocks
