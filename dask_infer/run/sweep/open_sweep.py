"""The sweeps of this process: one for each model, with groups that fit its memory."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from itertools import pairwise
from math import inf
from typing import Any

import dask

from dask_infer import config
from dask_infer.device.device import Device
from dask_infer.device.resolve_device import resolve_device
from dask_infer.model.runtime.stage_model import read_chain
from dask_infer.model.split.chain import Chain
from dask_infer.plan.facts import BlockFacts
from dask_infer.plan.layouts.sweep_groups import (
    check_blocks,
    leading_groups,
    plan_groups,
)
from dask_infer.plan.units import count, in_bytes
from dask_infer.replica.cache import cache
from dask_infer.replica.models_limit import models_limit
from dask_infer.replica.sizes import Sizes
from dask_infer.replica.worker_place import Place, current_worker
from dask_infer.run.sweep.group_loader import GroupLoader
from dask_infer.run.sweep.passes import Sweep
from dask_infer.spec import Job, StageLayers

logger = logging.getLogger(__name__)

#: Part of the memory that activations may take where nothing is configured.
SHARE = 0.1
#: Part of the free memory that groups may take where nothing limits them.
FREE = 0.6
#: Part of the memory at which Dask pauses a worker that a sweep fills.
PAUSE = 0.9
#: Sweeps that a process remembers.
MOST_SWEEPS = 16


_sweeps: OrderedDict[Any, Sweep] = OrderedDict()
_opening = threading.Lock()


def open_sweep(job: Job, place: Place) -> Sweep:
    """Return the sweep of a job's model in this process; equal jobs share one.

    Raises
    ------
    PlacementError
        If a block alone is larger than what models may take.
    """
    assert job.sweep is not None
    device = resolve_device(job.device)
    limit = models_limit(device, place)
    budget = config.get_bytes("sweep.activations")
    if budget is None:
        whole = place.memory_limit or device.free_bytes()
        budget = int(SHARE * whole)
    key = (
        *(job.model.key, job.model.kind, job.sweep.chain.key, job.sweep.stages),
        *(job.dtype, str(device), job.timeout, place.worker, limit),
        config.get("sweep.activations"),
    )
    with _opening:
        found = _sweeps.pop(key, None)
        if found is None:
            found = _planned(job, place, device, limit, budget)
        _sweeps[key] = found
        if len(_sweeps) > MOST_SWEEPS:
            _sweeps.popitem(last=False)
        return found


def _planned(
    job: Job, place: Place, device: Device, limit: int | None, budget: int
) -> Sweep:
    """Divide the model into groups."""
    assert job.sweep is not None
    spec, groups = job.model, job.sweep
    chain: Chain = read_chain(groups.chain)
    blocks = [BlockFacts(b.name, b.nbytes, 0.0) for b in chain.blocks]
    whose = f"{device} of worker {place.worker}"
    check_blocks(spec.name, blocks, inf if limit is None else limit, whose)
    room = _room(place, device, limit, budget)
    bounds = plan_groups(blocks, room, groups.stages)
    parts = [
        StageLayers(groups.chain, start, stop, number)
        for number, (start, stop) in enumerate(pairwise(bounds))
    ]
    sizes = [chain.stage_bytes(part.start, part.stop) for part in parts]
    kept = leading_groups(sizes, room)
    reads_ahead = max(map(sum, pairwise(sizes)), default=0) <= room
    logger.info(
        'model "%s" of %s is swept in %s, of %s at most, on %s; %d stay loaded',
        *(spec.name, in_bytes(chain.nbytes), count(len(parts), "layer group")),
        *(in_bytes(max(sizes)), whose, kept),
    )
    worker = current_worker()
    return Sweep(
        GroupLoader(job, place, parts, kept, reads_ahead),
        chain,
        Sizes(spec.name, (spec.key, job.dtype, device.kind, spec.compile)),
        budget,
        dask.config.get("temporary-directory", None)
        if worker is None
        else worker.local_directory,
    )


def _room(place: Place, device: Device, limit: int | None, activations: int) -> float:
    """Return the bytes that groups may take, beside what else is in memory."""
    if limit is None:
        return FREE * device.free_bytes()
    if device.torch_device.type != "cpu" or not place.pause_at:
        return limit
    models = sum(replica.nbytes for replica in cache.replicas())
    used = max(0, place.used_bytes() - models)
    return min(limit, PAUSE * place.pause_at - used - activations)
