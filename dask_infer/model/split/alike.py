"""Blocks that are alike: the same calls of equal modules, on values of equal sizes."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Mapping
from typing import Any

from torch import nn

from dask_infer.model.identity import pickling
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.program import Held, Ref, Step, replaced

#: What layers of transformers 5 call their own number; alike but for that they are.
NUMBERS = frozenset({"layer_idx", "layer_id"})


def marks(chain: Chain) -> list[bytes]:
    """Return a mark for each block; those of equal marks take equally long.

    What cannot be told has a mark of its own.
    """
    modules = chain.own_modules()
    return [_mark(chain, modules, block) for block in range(len(chain.blocks))]


def _mark(chain: Chain, modules: Mapping[str, nn.Module], block: int) -> bytes:
    """Return the digest of a block's calls, with its values numbered, not named."""
    alone = str(block).encode()
    first, last = chain.bounds[block : block + 2]
    entering, leaving = chain.cut_names(block), chain.cut_names(block + 1)
    values = chain.program.values
    steps = chain.program.steps[first:last]
    if any(name not in values for name in (*entering, *leaving)):
        return alone
    numbers = dict(zip(entering, itertools.count()))
    for step in steps:
        numbers.setdefault(step.name, len(numbers))
    told = [
        [values[name] for name in entering],
        [_told(chain, step, numbers) for step in steps],
        [(numbers[name], values[name]) for name in leaving],
    ]
    digest = hashlib.sha256(repr(told).encode())
    try:
        for step in steps:
            if step.kind == "module":
                digest.update(_pickled(modules[step.target]))
    except Exception:
        return alone
    return digest.digest()


def _told(chain: Chain, step: Step, numbers: Mapping[str, int]) -> Any:
    def leaf(value: Any) -> Any:
        if isinstance(value, Ref):
            return numbers[value.name]
        if isinstance(value, Held):
            return chain.tensors[chain.canonical(value.name)]
        return value

    target = "" if step.kind == "module" else step.target
    return (step.kind, target, replaced((step.args, step.kwargs), leaf))


def _pickled(module: nn.Module) -> bytes:
    written = io.BytesIO()
    _Unnumbered(written).dump(module)
    return written.getvalue()


class _Unnumbered(pickling.Pickler):
    """Leaves out the number that a layer of some families has in its model."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, nn.Module) and NUMBERS & vars(obj).keys():
            state = {k: v for k, v in vars(obj).items() if k not in NUMBERS}
            return nn.Module, (), {"class": type(obj), **state}
        return super().reducer_override(obj)
