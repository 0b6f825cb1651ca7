"""What each block costs, measured with made-up weights, one block at a time."""

from __future__ import annotations

import functools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dask_infer.device.threads import use_cpu_threads
from dask_infer.model.footprint import parse_dtype
from dask_infer.model.skeleton import named_tensors
from dask_infer.model.split.chain import TOKENS, Chain, Tensor
from dask_infer.model.split.load import put

#: Timed forwards of a block, after one that warms up; their median counts.
FORWARDS = 3


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
    costs = []
    for block in range(start, stop):
        stage = chain.stage(block, block + 1, place, modules=modules)
        given = _given(chain, block, rows, tokens, carry)
        given = {name: _moved(value, place) for name, value in given.items()}
        held = _materialise(chain, stage, place)
        with torch.inference_mode():
            carry, seconds = _timed(functools.partial(stage, given), place)
        _drop(stage, held)
        made = chain.blocks[block]
        handed = sum(v.nbytes for v in carry.values() if isinstance(v, torch.Tensor))
        costs.append(BlockCost(made.name, seconds, made.nbytes, handed))
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
    forward: Callable[[], dict[str, Any]], device: torch.device
) -> tuple[dict[str, Any], float]:
    times = []
    carry: dict[str, Any] = {}
    for _ in range(1 + FORWARDS):
        _wait(device)
        begun = time.perf_counter()
        carry = forward()
        _wait(device)
        times.append(time.perf_counter() - begun)
    return carry, statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
