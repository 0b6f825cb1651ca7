"""What each block costs, measured with made-up weights, one block at a time.

Of blocks that are alike only the first is measured: it is quicker, and what disturbs
one of the timings cannot make equal layers look unequal, and the cuts lopsided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dask_infer.device.threads import use_cpu_threads
from dask_infer.model.runtime.footprint import parse_dtype
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.alike import marks
from dask_infer.model.split.chain import TOKENS, Chain, Tensor
from dask_infer.model.split.clock import Clock
from dask_infer.model.split.load import put

#: Bytes written before each forward on the CPU, to push the block's weights out of the
#: caches, as the other blocks of its stage do. Without, a transformer layer of d=512
#: seemed to cost a third of what it does with few rows.
CACHE = 64 * 2**20


@dataclass(frozen=True)
class BlockCost:
    """One block at some number of rows, on one device."""

    name: str
    #: Seconds of a forward.
    seconds: float
    #: Bytes of its parameters and buffers.
    nbytes: int
    #: Bytes of what it hands on.
    carry_bytes: int


def profile(
    chain: Chain,
    start: int,
    stop: int,
    rows: int,
    *,
    tokens: int = TOKENS,
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
) -> list[BlockCost]:
    """Measure blocks [start, stop) at `rows` rows, without the model's weights.

    Numbers are random, so a process that could never hold the model can measure it: a
    block's tensors are made, used and dropped before the next one's.

    Parameters
    ----------
    rows, tokens
        Size of the batch; tokens only where the model takes texts.
    dtype
        Floating dtype of the chain, if any is given.
    threads
        Threads of a forward on the CPU; None as they are.
    """
    wanted = parse_dtype(dtype)
    if wanted is not None and wanted != chain.floating:
        raise ValueError(f"dtype={dtype!r}: the chain was split for {chain.floating}")
    if threads is not None:
        use_cpu_threads(threads)
    place = torch.device(device)
    modules = chain.own_modules()
    carry: dict[str, Any] | None = None
    known: dict[bytes, BlockCost] = {}
    costs = []
    for block, mark in zip(range(start, stop), marks(chain)[start:stop], strict=True):
        made = chain.blocks[block]
        if mark in known:
            carry = None
            costs.append(replace(known[mark], name=made.name))
            continue
        stage = chain.stage(block, block + 1, place, modules=modules)
        given = _given(chain, block, rows, tokens, carry)
        given = {name: _moved(value, place) for name, value in given.items()}
        held = _materialise(chain, stage, place)
        with torch.inference_mode():
            carry, seconds = _timed(stage, given, place)
        _drop(stage, held)
        handed = sum(v.nbytes for v in carry.values() if isinstance(v, torch.Tensor))
        known[mark] = BlockCost(made.name, seconds, made.nbytes, handed)
        costs.append(known[mark])
    return costs


def _given(
    chain: Chain, block: int, rows: int, tokens: int, carry: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a carry: what the block before made, where the sizes are not known."""
    try:
        return chain.example(block, rows, tokens)
    except ValueError:
        if carry is None and block > 0:
            carry = _by_running(chain, block, rows, tokens)
        if carry is None:
            raise
        return carry


def _by_running(chain: Chain, block: int, rows: int, tokens: int) -> dict[str, Any]:
    carry = chain.example(0, rows, tokens)
    modules = chain.own_modules()
    for before in range(block):
        stage = chain.stage(before, before + 1, modules=modules)
        held = _materialise(chain, stage, torch.device("cpu"))
        with torch.inference_mode():
            carry = stage(carry)
        _drop(stage, held)
    return carry


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


Held = Mapping[str, tuple[nn.Module, str, torch.Tensor]]


def _materialise(chain: Chain, stage: nn.Module, device: torch.device) -> Held:
    """Give a stage numbers; return what it held before."""
    places = defaultdict(list)
    held = {}
    for name, tensor in named_tensors(stage):
        places[chain.canonical(name)].append(name)
        parent, _, leaf = name.rpartition(".")
        held[name] = (stage.get_submodule(parent), leaf, tensor)
    for name, names in places.items():
        made = chain.constants.get(name)
        made = _numbers(chain.tensors[name]) if made is None else made
        put(chain, stage, names, made, device)
    return held


def _numbers(tensor: Tensor) -> torch.Tensor:
    if tensor.dtype.is_floating_point:
        return torch.empty(tensor.shape).uniform_(0.01, 0.03).to(tensor.dtype)
    return torch.zeros(tensor.shape, dtype=tensor.dtype)


def _drop(stage: nn.Module, held: Held) -> None:
    for parent, leaf, tensor in held.values():
        setattr(parent, leaf, tensor)


def _timed(
    stage: nn.Module, given: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], float]:
    cache = torch.empty(CACHE if device.type == "cpu" else 0, dtype=torch.uint8)
    clock = Clock(alone=device.type == "cpu" and torch.get_num_threads() == 1)
    carry: dict[str, Any] = {}
    while not clock.enough:
        cache.fill_(clock.runs)
        _wait(device)
        with clock:
            carry = stage(given)
            _wait(device)
    return carry, clock.seconds


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
