"""Weights whose results stay divided from one layer to the next: found by trial.

Of each kind of block one is run with synthetic weights in float32, whole and by threads
in place of shards. Where an operation meets results that it could go on with if a
weight were divided otherwise, it says so (`DividedTensor.wish`), and the block is run
again. What is found is used only if it gives what the whole block gives, by fewer
exchanges. No name of a module or an attribute decides.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import lcm
from typing import Any

import torch
from torch import nn

from dask_infer.model.runtime.footprint import with_attributes
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.block_costs import block_mark
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.export.layer_operator import fingerprint
from dask_infer.model.split.shards.axis_parts import AxisParts
from dask_infer.model.split.shards.collective import (
    Meeting,
    ThreadCollective,
    exchanging,
)
from dask_infer.model.split.shards.division import Cut, Shard
from dask_infer.model.split.steps import layers_of

logger = logging.getLogger(__name__)

Cuts = dict[str, Cut]

#: Rows and tokens of the synthetic batch.
ROWS, TOKENS = 3, 6
#: Most changes of a block's cuts, one after the other.
ROUNDS = 8
#: Largest difference, relative to the largest value: 1e-6 where right, 0.1 where wrong.
TOLERANCE = 1e-4


def find_cuts(
    chain: Chain, shards: int, most_bytes: float = float("inf")
) -> tuple[tuple[str, Cut], ...]:
    """Return how weights are divided so that results stay divided, for some of them.

    Blocks of more than `most_bytes` are left as they are.
    """
    marks = {path: fingerprint(layer) for path, layer in chain.layers().items()}
    uses = Counter(name for block in chain.blocks for name in block.tensors)
    alone = {name for name in chain.axes if uses[name] == 1}
    floats = _in_float32(chain)
    known: dict[Any, dict[tuple[int, str], Cut]] = {}
    found: Cuts = {}
    for block in range(len(chain.blocks)):
        places = _places(chain, block, alone)
        if not places or chain.blocks[block].nbytes > most_bytes:
            continue
        # Of blocks that are alike one may share a weight with another block.
        kind = block_mark(chain, block, marks), *places.values()
        if kind not in known:
            cuts = _try(floats, block, list(places), shards)
            known[kind] = {places[name]: cut for name, cut in cuts.items()}
        by_place = {place: name for name, place in places.items()}
        found.update({by_place[place]: cut for place, cut in known[kind].items()})
    return tuple(sorted(found.items()))


def _in_float32(chain: Chain) -> Chain:
    tensors = {}
    for name, tensor in chain.tensors.items():
        single = tensor.float() if tensor.dtype.is_floating_point else tensor
        if isinstance(tensor, nn.Parameter):
            single = with_attributes(nn.Parameter(single, False), tensor)
        tensors[name] = single
    return replace(chain, tensors=tensors)


def _places(chain: Chain, block: int, alone: set[str]) -> dict[str, tuple[int, str]]:
    """Return the layer and the name in it of each of these weights of a block."""
    start, stop = chain.bounds[block : block + 2]
    return {
        name: (number, name.removeprefix(f"{path}."))
        for name in chain.blocks[block].tensors
        for number, path in enumerate(layers_of(chain.steps[start:stop]))
        if name in alone and name.startswith(f"{path}.")
    }


def _try(chain: Chain, block: int, names: list[str], shards: int) -> Cuts:
    try:
        return _Trial(chain, block, names, shards).cuts()
    except Exception as error:  # the block runs with each result put together
        name = chain.blocks[block].name
        logger.debug("%s: trial of %s failed: %s", chain.name, name, error)
        return {}


class _Trial:
    """One block, whole and in shards that are threads.

    `names` are the weights that may be divided otherwise.
    """

    def __init__(self, chain: Chain, block: int, names: list[str], shards: int) -> None:
        self._chain, self._block, self._shards = chain, block, shards
        self._names = names
        #: Outputs of weights that stay together.
        self._units: dict[str, int] = {}
        #: Wishes that were granted: no two of them take turns for ever.
        self._granted: set[tuple[str, Cut]] = set()
        self._random = torch.Generator().manual_seed(0)
        carry = chain.example(block, ROWS, TOKENS)
        if carry is None:
            raise ValueError("what enters it has no known size")
        self._carry = {name: self._value(value) for name, value in carry.items()}
        self._weights = {
            name: chain.constants[name]
            if name in chain.constants
            else self._numbers(chain.tensors[name].shape, chain.tensors[name].dtype)
            for name in chain.blocks[block].tensors
        }
        self._stages = [chain.stage(block, block + 1) for _ in range(shards)]

    def cuts(self) -> Cuts:
        """Return what was found and proven; empty where there is nothing."""
        whole = self._stages[0]
        self._fill(whole, None)
        with torch.inference_mode():
            expected = whole(self._copied())
        plain, _, _ = self._run({})
        cuts = {name: self._even(name) for name in self._names}
        for _ in range(ROUNDS):
            exchanges, outputs, wishes = self._run(cuts)
            changed = {
                name: cut
                for name, wish in wishes.items()
                if (cut := self._grant(name, cuts[name], wish)) is not None
            }
            if not changed:
                break
            cuts.update(changed)
        else:  # the last changes were never run
            return {}
        right = all(_equal(output, expected) for output in outputs)
        if not right:
            logger.info(
                "%s: results of %s stay divided no more: a trial differs",
                self._chain.name,
                self._chain.blocks[self._block].name,
            )
        return cuts if right and exchanges < plain else {}

    def _even(self, name: str, unit: int = 1, ends: Sequence[int] = ()) -> Cut:
        axis = self._chain.axes[name]
        size = self._chain.tensors[name].shape[axis]
        return Cut(axis, AxisParts.even(size, self._shards, unit, ends), stays=True)

    def _grant(self, name: str, cut: Cut, wish: tuple[str, Any]) -> Cut | None:
        """Return how a weight is divided from now on; None for as before."""
        kind, value = wish
        shape, column = self._chain.tensors[name].shape, self._chain.axes[name]
        if kind == "row":
            axis = len(shape) - 1 if column != len(shape) - 1 else len(shape) - 2
            new = Cut(axis, value, stays=True)
            fits = shape[axis] == value.size
        else:
            if cut.axis != column:
                return None
            edges = {chunk[0] for chunk in cut.parts.chunks[1:]}
            if kind == "unit":
                self._units[name] = lcm(value, self._units.get(name, 1))
            else:
                edges |= {*value}
            new = self._even(name, self._units.get(name, 1), sorted(edges))
            fits = all(
                stop > start
                for shard in range(self._shards)
                for start, stop in new.parts.ranges(shard)
            )
        if not fits or new == cut or (name, new) in self._granted:
            return None
        self._granted.add((name, new))
        return new

    # --- running it --------------------------------------------------------------

    def _fill(self, stage: nn.Module, shard: Shard | None) -> None:
        for first, names in self._chain.names_in(stage).items():
            weight = self._weights[first]
            self._chain.put(stage, names, weight, torch.device("cpu"), shard)

    def _run(
        self, cuts: Cuts
    ) -> tuple[int, list[dict[str, Any]], dict[str, tuple[str, Any]]]:
        """Return the exchanges, the outputs of each shard, and the wishes by name."""
        for number, stage in enumerate(self._stages):
            self._fill(stage, Shard(number, self._shards, tuple(cuts.items())))
        meeting, wishes = Meeting(self._shards), dict[int, tuple[str, Any]]()

        def work(shard: int) -> dict[str, Any]:
            collective = ThreadCollective(meeting, shard)
            collective.wishes = wishes if shard == 0 else None
            with exchanging(collective), torch.inference_mode():
                output: dict[str, Any] = self._stages[shard](self._copied())
            return output

        outputs = in_threads(self._shards, work, meeting)
        first = {
            id(tensor): self._chain.first_name(name)
            for name, tensor in named_tensors(self._stages[0])
        }
        named = {first[number]: wish for number, wish in wishes.items()}
        return meeting.count, outputs, {n: w for n, w in named.items() if n in cuts}

    def _copied(self) -> dict[str, Any]:
        return {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in self._carry.items()
        }

    def _value(self, value: Any) -> Any:
        """Return numbers for a synthetic value: other rows differ, some are masked."""
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype is torch.bool:
            mask = torch.ones(value.shape, dtype=torch.bool)
            mask[0, ..., -2:] = False
            return mask
        if value.dtype.is_floating_point:
            return torch.randn(value.shape, generator=self._random)
        return torch.randint(0, 2, value.shape, generator=self._random)

    def _numbers(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if not dtype.is_floating_point:
            return torch.zeros(shape, dtype=dtype)
        numbers = torch.randn(shape, generator=self._random)
        if len(shape) < 2:
            return 1 + 0.1 * numbers
        scaled: torch.Tensor = numbers / max(1, shape[-1]) ** 0.5
        return scaled


def in_threads(shards: int, work: Callable[[int], Any], meeting: Meeting) -> list[Any]:
    """Return what each shard's thread makes of it; where one fails, the others end."""

    def run(shard: int) -> Any:
        try:
            return work(shard)
        except threading.BrokenBarrierError:
            return None
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(shards) as pool:
        return list(pool.map(run, range(shards)))


def _equal(given: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether values are those of the whole block."""
    return given.keys() == expected.keys() and all(
        _near(given[name], value) for name, value in expected.items()
    )


def _near(given: Any, expected: Any) -> bool:
    if not isinstance(expected, torch.Tensor):
        return bool(given == expected)
    if given.shape != expected.shape or given.dtype != expected.dtype:
        return False
    if not expected.dtype.is_floating_point:
        return bool(given.equal(expected))
    finite = expected[expected.isfinite()].abs()
    most = float(finite.max()) if len(finite) else 0.0
    atol = TOLERANCE * most
    return bool(given.allclose(expected, rtol=0, atol=atol, equal_nan=True))
