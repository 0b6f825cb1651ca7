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
from dask_infer.model.split import BlockCost, Chain, profile
from dask_infer.model.split.shards.trial import find_cuts
from dask_infer.model.split.uncut import open_uncut
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

    Parameters
    ----------
    has_gpu
        Whether its worker has a GPU, or a resource of that name.
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
    if note := _too_large(spec):
        return replace(projected_chain(read_chain(spec.chain)), note=note)
    if spec.layout.shards == 1:
        return _timed(spec)
    # Fewer than two there are not, and more only where two do not fit.
    shards = 2 if spec.layout.shards == "auto" else spec.layout.shards
    cuts = find_cuts(read_chain(spec.chain), shards, _most_bytes(spec))
    return replace(_timed(spec), shards=shards, cuts=pickle.dumps(cuts))


def _timed(spec: GroupSpec) -> ChainFacts:
    assert spec.chain is not None
    kind = resolve_device(spec.device).torch_device.type
    key = chain_key(spec.chain.key, kind)
    known = measured_chain(projected_chain(read_chain(spec.chain)), recall(key))
    if known is not None:
        return known
    chain = measure_chain(spec)
    if chain.fewer is not None:
        state = {
            "seconds": [block.seconds for block in chain.blocks],
            "activations": [block.activation_bytes for block in chain.blocks],
            "fewer": chain.fewer,
        }
        remember(key, state)
    return chain


def measured_chain(
    projected: ChainFacts, state: Mapping[str, Any] | None
) -> ChainFacts | None:
    """Return blocks with the times of an earlier job; None where they do not fit."""
    if state is None or len(state["seconds"]) != len(projected.blocks):
        return None
    blocks = tuple(
        replace(block, seconds=seconds, activation_bytes=nbytes)
        for block, seconds, nbytes in zip(
            projected.blocks, state["seconds"], state["activations"], strict=True
        )
    )
    return ChainFacts(blocks, tuple(state["fewer"]))


def measure_chain(spec: GroupSpec) -> ChainFacts:
    """Return the bytes and seconds of each block of a group's model."""
    assert spec.chain is not None
    chain = read_chain(spec.chain)
    device = resolve_device(spec.device)
    threads = current_place().cpu_threads

    def timed(rows: int) -> list[BlockCost]:
        blocks = len(chain.blocks)
        return profile(
            chain, 0, blocks, rows, tokens=TOKENS, device=str(device), threads=threads
        )

    note = ""
    seconds: tuple[float, ...] | None
    try:
        seconds = tuple(cost.seconds for cost in timed(FEW_ROWS))
        costs = timed(ROWS)
    except Exception as error:  # rows of the job may well pass
        note = (
            "Balanced by the bytes of weights: synthetic rows, by which its blocks are "
            f"timed, fail in it ({type(error).__name__}: {error})."
        )
        logger.warning('model "%s": %s', spec.model.name, note)
        seconds, costs = None, _by_bytes(chain)
    return ChainFacts(_block_facts(chain, costs), seconds, note)


def projected_chain(chain: Chain) -> ChainFacts:
    """Return the blocks of a chain with times by their bytes; runs nothing."""
    return ChainFacts(_block_facts(chain, _by_bytes(chain)), None)


def _block_facts(chain: Chain, costs: list[BlockCost]) -> tuple[BlockFacts, ...]:
    facts, entering = [], 0
    for block, cost in zip(chain.blocks, costs, strict=True):
        facts.append(
            BlockFacts(
                block.name,
                block.nbytes,
                cost.seconds,
                cut_bytes=entering,
                activation_bytes=cost.carry_bytes,
                parameters=block.parameters,
                divisible=chain.divisible_bytes(block),
                exchanges=chain.exchanges(block),
            )
        )
        entering = block.cut_bytes_per_row * ROWS
    return tuple(facts)


def _too_large(spec: GroupSpec) -> str:
    """Return why blocks cannot be timed here, which are too large for one worker."""
    assert spec.chain is not None
    block = max(read_chain(spec.chain).blocks, key=lambda block: block.nbytes)
    if block.nbytes <= _most_bytes(spec):
        return ""
    return (
        f'Balanced by the bytes of weights: block "{block.name}" of '
        f"{in_bytes(block.nbytes)} is too large to be timed on one worker."
    )


def _most_bytes(spec: GroupSpec) -> float:
    """Bytes of a block that fits here; if divided, as a whole and in all shards."""
    limit = current_place().replica_limit()
    return inf if limit is None else limit / (1 if spec.layout.shards == 1 else 3)


def uncut_chain(spec: GroupSpec) -> ChainFacts:
    """Return the bytes of a model that shards alone divide, as one block."""
    uncut = open_uncut(spec.model, None, spec.dtype)
    nbytes = uncut.shard_bytes(None)
    block = BlockFacts(
        spec.model.name,
        nbytes,
        nbytes / WEIGHTS_RATE,
        parameters=sum(
            tensor.numel()
            for tensor in uncut.tensors.values()
            if isinstance(tensor, nn.Parameter)
        ),
        divisible=sum(uncut.tensors[name].nbytes for name in uncut.axes),
        exchanges=sum(len(uncut.tensors[name].shape) > 1 for name in uncut.axes),
    )
    return ChainFacts((block,), None, "It cannot be cut into blocks, nor timed.")


def _by_bytes(chain: Chain) -> list[BlockCost]:
    return [
        BlockCost(
            block.name,
            max(1, block.nbytes) / WEIGHTS_RATE,
            block.nbytes,
            block.cut_bytes_per_row * ROWS,
        )
        for block in chain.blocks
    ]
