"""The bytes and seconds of the blocks of a chain, measured once by a group request.

The worker that runs the group request times each block with synthetic weights, one at a
time, so that a worker which could never hold the model can do it. Only the proportions
matter to the cuts; the seconds choose the microbatch. Where the model refuses synthetic
rows, the bytes of its blocks stand in for their time.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

from torch import nn

from dask_infer.device.resolve_device import resolve_device
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.stage_model import read_chain
from dask_infer.model.split import Chain, profile
from dask_infer.model.split.shards.trial import find_cuts
from dask_infer.model.split.stage_loader import open_uncut
from dask_infer.plan.facts import BlockFacts, ChainFacts
from dask_infer.plan.microbatch_size import FEW_ROWS, ROWS
from dask_infer.plan.units import in_bytes
from dask_infer.replica.measured import chain_key
from dask_infer.replica.remembered import recall, remember
from dask_infer.replica.worker_place import current_place
from dask_infer.spec import GroupSpec

logger = logging.getLogger(__name__)

#: Bytes of weights a second, where no time is known: a forward of few rows reads them.
WEIGHTS_RATE = 10e9
#: Tokens of the texts that are timed.
TOKENS = 32


def planned_kind(group: GroupSpec, has_gpu: bool) -> str:
    """Return the kind of device that a model runs on, as far as plans know.

    `has_gpu` says whether its worker has a GPU, or a resource of that name.
    """
    device = group.device.partition(":")[0]
    if device != "auto":
        return device
    if format_of(group.model).takes_host():
        return "cpu"
    return "cuda" if has_gpu else "cpu"


def timed_chain(spec: GroupSpec) -> ChainFacts:
    """Return the bytes and seconds of each block, of an earlier job or measured now."""
    if spec.chain is None:
        return uncut_chain(spec)
    chain, asked = read_chain(spec.chain), spec.layout.shards
    # A block fits here as a whole; if divided, also in all shards.
    limit = current_place().replica_limit()
    most = inf if limit is None else limit / (1 if asked == 1 else 3)
    largest = max(chain.blocks, key=lambda block: block.nbytes)
    if largest.nbytes > most:
        note = (
            f'Balanced by the bytes of weights: block "{largest.name}" of '
            f"{in_bytes(largest.nbytes)} is too large to be timed on one worker."
        )
        return chain_facts(chain, None, note)
    if asked == 1:
        return _timed(spec, chain)
    # Fewer than two there are not, and more only where two do not fit.
    shards = 2 if asked == "auto" else asked
    cuts = find_cuts(chain, shards, most)
    return replace(_timed(spec, chain), shards=shards, cuts=pickle.dumps(cuts))


def _timed(spec: GroupSpec, chain: Chain) -> ChainFacts:
    assert spec.chain is not None
    device = resolve_device(spec.device).torch_device
    key = chain_key(spec.chain.key, device.type)
    if (times := recall(key)) is not None:
        return chain_facts(chain, times)
    blocks, where = len(chain.blocks), str(device)
    options = {"tokens": TOKENS, "threads": current_place().cpu_threads}
    try:
        few, costs = (
            profile(chain, 0, blocks, rows, device=where, **options)
            for rows in (FEW_ROWS, ROWS)
        )
    except Exception as error:  # rows of the job may well pass
        note = (
            "Balanced by the bytes of weights: synthetic rows, by which its blocks are "
            f"timed, fail in it ({type(error).__name__}: {error})."
        )
        logger.warning('model "%s": %s', spec.model.name, note)
        return chain_facts(chain, None, note)
    times = {
        "seconds": [cost.seconds for cost in costs],
        "activations": [cost.carry_bytes for cost in costs],
        "fewer": [cost.seconds for cost in few],
    }
    remember(key, times)
    return chain_facts(chain, times)


def chain_facts(
    chain: Chain, times: Mapping[str, Any] | None, note: str = ""
) -> ChainFacts:
    """Return the blocks of a chain; runs nothing.

    Parameters
    ----------
    times
        What was measured: ``seconds`` and ``activations``, in bytes, of each block, and
        its seconds at ``fewer`` rows. None for times by the bytes of weights.
    """
    facts, entering = [], 0
    for number, block in enumerate(chain.blocks):
        leaving = block.cut_bytes_per_row * ROWS
        facts.append(
            BlockFacts(
                block.name,
                block.nbytes,
                times["seconds"][number] if times else _by_bytes(block.nbytes),
                cut_bytes=entering,
                activation_bytes=times["activations"][number] if times else leaving,
                parameters=block.parameters,
                divisible=chain.divisible_bytes(block),
                exchanges=chain.exchanges(block),
            )
        )
        entering = leaving
    return ChainFacts(tuple(facts), tuple(times["fewer"]) if times else None, note)


def _by_bytes(nbytes: int) -> float:
    return max(1, nbytes) / WEIGHTS_RATE


def uncut_chain(spec: GroupSpec) -> ChainFacts:
    """Return the bytes of a model that shards alone divide, as one block."""
    uncut = open_uncut(spec.model, None, spec.dtype)
    nbytes = uncut.shard_bytes(None)
    block = BlockFacts(
        spec.model.name,
        nbytes,
        _by_bytes(nbytes),
        parameters=sum(
            tensor.numel()
            for tensor in uncut.tensors.values()
            if isinstance(tensor, nn.Parameter)
        ),
        divisible=sum(uncut.tensors[name].nbytes for name in uncut.axes),
        exchanges=sum(len(uncut.tensors[name].shape) > 1 for name in uncut.axes),
    )
    return ChainFacts((block,), None, "It cannot be cut into blocks, nor timed.")
