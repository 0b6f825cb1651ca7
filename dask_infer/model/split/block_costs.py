"""What each block costs, measured with synthetic weights, one block at a time.

Of blocks that are alike only the first is measured: it is quicker, and what disturbs
one of the timings cannot make equal layers look unequal, and the cuts lopsided.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.node import map_aggregate

from dask_infer.device.threads import use_cpu_threads
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.chain import TOKENS, Chain, Tensor
from dask_infer.model.split.clock import Clock
from dask_infer.model.split.export.fingerprint import fingerprints
from dask_infer.model.split.program import Value, ValueRef, WeightRef
from dask_infer.model.split.stage_loader import put

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
    threads: int | None = None,
) -> list[BlockCost]:
    """Measure blocks [start, stop) at `rows` rows, without the model's weights.

    Numbers are random, so a process that could never hold the model can measure it: a
    block's tensors are made, used and dropped before the next one's.

    Parameters
    ----------
    rows, tokens
        Size of the batch; tokens only where the model takes texts.
    threads
        Threads of a forward on the CPU; None as they are.
    """
    if threads is not None:
        use_cpu_threads(threads)
    bench = _Bench(chain, rows, tokens, torch.device(device))
    return [bench.cost(block) for block in range(start, stop)]


class _Bench:
    """Runs blocks of a chain, each kind of them once."""

    def __init__(
        self, chain: Chain, rows: int, tokens: int, device: torch.device
    ) -> None:
        self._chain, self._rows, self._tokens = chain, rows, tokens
        self._device = device
        self._layers = chain.layers()
        self._fingerprint = fingerprints(self._layers)
        self._known: dict[bytes, float] = {}
        self._is_cpu = device.type == "cpu"
        self._cache = torch.empty(CACHE if self._is_cpu else 0, dtype=torch.uint8)

    def cost(self, block: int) -> BlockCost:
        """Measure a block, or return the cost of one that is like it."""
        made = self._chain.blocks[block]
        mark = block_mark(self._chain, block, self._fingerprint)
        handed = self._handed_bytes(block)
        if mark in self._known and handed is not None:
            seconds = self._known[mark]
        else:
            carry = {
                name: value.to(self._device) if _is_tensor(value) else value
                for name, value in self._carry(block).items()
            }
            clock = Clock(alone=self._is_cpu and torch.get_num_threads() == 1)
            carry = self._run(block, carry, clock)
            handed = sum(value.nbytes for value in carry.values() if _is_tensor(value))
            seconds = self._known.setdefault(mark, clock.seconds)
        return BlockCost(made.name, seconds, made.nbytes, handed)

    def _handed_bytes(self, block: int) -> int | None:
        """Return the bytes that a block hands on; None where that is not known."""
        program = self._chain.program
        found = [program.values.get(n) for n in self._chain.cut_names(block + 1)]
        known = [value for value in found if value is not None]
        if len(known) < len(found):
            return None
        return sum(value.nbytes(self._rows, self._tokens) for value in known)

    def _carry(self, block: int) -> dict[str, Any]:
        """Return what enters a block; by running those before where it is not known."""
        try:
            return self._chain.example(block, self._rows, self._tokens)
        except ValueError:
            if block == 0:
                raise
            return self._run(block - 1, self._carry(block - 1))

    def _run(
        self, block: int, carry: dict[str, Any], clock: Clock | None = None
    ) -> dict[str, Any]:
        """Return what a block hands on; run it until the clock has enough."""
        stage = self._chain.stage(block, block + 1, self._device, layers=self._layers)
        held = dict(named_tensors(stage))
        self._fill(stage)
        with torch.inference_mode():
            handed: dict[str, Any] = stage(carry)  # warms up
            while clock is not None and not clock.enough:
                self._cache.fill_(clock.runs)
                self._wait()
                with clock:
                    stage(carry)
                    self._wait()
        for name, tensor in held.items():  # other blocks share the modules
            parent, _, leaf = name.rpartition(".")
            setattr(stage.get_submodule(parent), leaf, tensor)
        return handed

    def _fill(self, stage: nn.Module) -> None:
        names = defaultdict(list)
        for name, _ in named_tensors(stage):
            names[self._chain.first_name(name)].append(name)
        for first, others in names.items():
            made = self._chain.constants.get(first)
            made = _numbers(self._chain.tensors[first]) if made is None else made
            put(self._chain, stage, others, made, self._device)

    def _wait(self) -> None:
        if not self._is_cpu:
            torch.accelerator.synchronize(self._device)


def block_mark(
    chain: Chain, block: int, fingerprint: Callable[[str], bytes | None]
) -> bytes:
    """Return a digest of a block's calls, equal for blocks that take equally long.

    What cannot be compared has a mark of its own.
    """
    first, last = chain.bounds[block : block + 2]
    steps, values = chain.program.steps[first:last], chain.program.values
    layers = [fingerprint(step.target) for step in steps if step.kind == "layer"]
    # Values have numbers in place of names, in the order in which they are read; what
    # only passes through does not count.
    numbers: dict[str, int] = {}
    entering = chain.cut_names(block)
    read: list[Value | None] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, ValueRef):
            if value.name not in numbers and value.name in entering:
                read.append(values.get(value.name))
            return numbers.setdefault(value.name, len(numbers))
        if isinstance(value, WeightRef):
            return chain.tensors[chain.first_name(value.name)]
        return value

    calls = []
    for step in steps:
        target = "" if step.kind in ("layer", "leaves") else step.target
        calls.append((target, map_aggregate((step.args, dict(step.kwargs)), leaf)))
        numbers.setdefault(step.name, len(numbers))
    if None in layers or None in read:
        return str(block).encode()
    return hashlib.sha256(repr((layers, calls, read)).encode()).digest()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _numbers(tensor: Tensor) -> torch.Tensor:
    if tensor.dtype.is_floating_point:
        return torch.empty(tensor.shape).uniform_(0.01, 0.03).to(tensor.dtype)
    return torch.zeros(tensor.shape, dtype=tensor.dtype)
