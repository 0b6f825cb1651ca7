"""What each block costs, measured with synthetic weights, one block at a time.

Of blocks that are alike only the first is measured: it is quicker, and what disturbs
one of the timings cannot make equal layers look unequal, and the cuts lopsided.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx.node import map_aggregate

from dask_infer.device.device import use_cpu_threads
from dask_infer.model.split.chain import TOKENS, Chain
from dask_infer.model.split.export.layer_operator import fingerprint
from dask_infer.model.split.steps import ValueRef, WeightRef, nbytes_of

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: Bytes written before each forward on the CPU, to push the block's weights out of the
#: caches, as the other blocks of its stage do. Without, a transformer layer of d=512
#: seemed to cost a third of what it does with few rows.
CACHE = 64 * 2**20
#: Runs of a block at most.
RUNS = 7
#: Seconds after which nothing is run again.
TIME_LIMIT = 0.1


@dataclass(frozen=True)
class BlockCost:
    """One block at some number of rows, on one device."""

    #: Seconds of a forward.
    seconds: float
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
        self._marks = {path: fingerprint(each) for path, each in self._layers.items()}
        self._known: dict[bytes, float] = {}
        self._is_cpu = device.type == "cpu"
        self._cache = torch.empty(CACHE if self._is_cpu else 0, dtype=torch.uint8)

    def cost(self, block: int) -> BlockCost:
        """Measure a block, or return the cost of one that is like it."""
        mark = block_mark(self._chain, block, self._marks)
        handed = self._chain.example(block + 1, self._rows, self._tokens)
        if mark not in self._known or handed is None:
            handed, seconds = self._run(block, is_timed=True)
            self._known.setdefault(mark, seconds)
        return BlockCost(self._known[mark], nbytes_of(handed))

    def _carry(self, block: int) -> dict[str, Any]:
        """Return what enters a block; by running those before where it is not known."""
        known = self._chain.example(block, self._rows, self._tokens)
        if known is None:
            return self._run(block - 1)[0]
        return {
            name: synthetic(value).to(self._device)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in known.items()
        }

    def _run(
        self, block: int, *, is_timed: bool = False
    ) -> tuple[dict[str, Any], float]:
        """Return what a block hands on, and the seconds of a forward, if asked for."""
        chain, carry = self._chain, self._carry(block)
        stage = chain.stage(block, block + 1, self._device, layers=self._layers)
        for first, names in chain.names_in(stage).items():
            made = chain.constants.get(first)
            made = synthetic(chain.tensors[first]) if made is None else made
            chain.put(stage, names, made, self._device)

        def forward() -> dict[str, Any]:
            handed: dict[str, Any] = stage(carry)
            if not self._is_cpu:
                torch.accelerator.synchronize(self._device)
            return handed

        with torch.inference_mode():
            handed = forward()  # warms up
            alone = self._is_cpu and torch.get_num_threads() == 1
            clear = self._cache.zero_
            seconds = fastest(forward, clear, alone=alone) if is_timed else 0.0
        stage.to("meta")  # other blocks share the modules
        return handed, seconds


def fastest(work: Callable[[], Any], clear: Callable[[], Any], *, alone: bool) -> float:
    """Return the seconds of the fastest of some runs, on a machine that may be busy.

    Parameters
    ----------
    clear
        Runs before each, and takes no part in its time.
    alone
        The calling thread does all of the work. Then its own CPU time stands in for
        runs that were all interrupted: work of 20 ms never gets through undisturbed
        where others want the core.
    """
    whole: list[float] = []
    interrupted: list[float] = []
    end = time.perf_counter() + TIME_LIMIT
    while len(whole) + len(interrupted) < RUNS and time.perf_counter() <= end:
        clear()
        cpu, stops, start = time.thread_time(), _interruptions(), time.perf_counter()
        work()
        wall = time.perf_counter() - start
        if alone and _interruptions() > stops:
            interrupted.append(time.thread_time() - cpu)
        else:
            whole.append(wall)
    return min(whole or interrupted)


def _interruptions() -> int:
    """How often the calling thread had to leave its core to others."""
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def block_mark(chain: Chain, block: int, layers: Mapping[str, bytes | None]) -> bytes:
    """Return a digest of a block's calls, equal for blocks that take equally long.

    What cannot be compared has a mark of its own. `layers` has fingerprints by path.
    """
    first, last = chain.bounds[block : block + 2]
    entering = chain.cut_names(block)
    # Values have numbers in place of names, in the order in which they are read; what
    # only passes through does not count.
    numbers: dict[str, int] = {}
    read: list[Any] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, ValueRef):
            if value.name not in numbers and value.name in entering:
                read.append(chain.values.get(value.name))
            return numbers.setdefault(value.name, len(numbers))
        if isinstance(value, WeightRef):
            return chain.tensors[chain.first_name(value.name)]
        return value

    calls: list[Any] = []
    for step in chain.steps[first:last]:
        target = layers[step.target] if step.kind == "layer" else step.target
        arguments = map_aggregate((step.args, dict(step.kwargs)), leaf)
        calls.append((target, step.call, arguments))
        numbers.setdefault(step.name, len(numbers))
    if None in read or any(target is None for target, *_ in calls):
        return str(block).encode()
    return hashlib.sha256(repr((calls, read)).encode()).digest()


def synthetic(like: torch.Tensor) -> torch.Tensor:
    """Return small numbers; ones for masks, zeros for other whole numbers."""
    if like.dtype.is_floating_point:
        numbers = torch.empty(like.shape, dtype=torch.float32).uniform_(0.01, 0.03)
        return numbers.to(like.dtype)
    return torch.full(like.shape, int(like.dtype is torch.bool), dtype=like.dtype)
