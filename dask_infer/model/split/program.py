"""A model written as steps: what any interval of them reads and hands on.

It has no weights, survives pickle without tracing again, and imports nothing of the
user's until a stage is built from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch.fx.node import map_aggregate


@dataclass(frozen=True)
class ValueRef:
    """The value of an earlier step, or an input."""

    name: str


@dataclass(frozen=True)
class WeightRef:
    """A parameter, buffer or constant of the model, by its name."""

    name: str


@dataclass(frozen=True)
class Value:
    """What is known of a tensor, or of a number, without computing it."""

    #: None of a number.
    dtype: torch.dtype | None
    #: Sizes, or the number: as it is, or an expression of `rows` and `tokens`.
    shape: tuple[int | str, ...]

    def sizes(self, rows: int, tokens: int) -> list[int]:
        """Return the sizes for a batch."""
        names = {"rows": rows, "tokens": tokens, "math": math, "min": min, "max": max}
        return [
            int(eval(size, {"__builtins__": {}}, names))
            if isinstance(size, str)
            else size
            for size in self.shape
        ]

    def on_meta(self, rows: int, tokens: int) -> torch.Tensor | int:
        """Return the number, or a tensor without memory."""
        sizes = self.sizes(rows, tokens)
        if self.dtype is None:
            return sizes[0]
        return torch.empty(sizes, dtype=self.dtype, device="meta")

    def nbytes(self, rows: int, tokens: int) -> int:
        """Return the bytes for a batch."""
        itemsize = 0 if self.dtype is None else self.dtype.itemsize
        return itemsize * math.prod(self.sizes(rows, tokens))


@dataclass(frozen=True)
class Step:
    """One call."""

    name: str
    kind: Literal["layer", "leaves", "operator", "function"]
    #: Path of a layer, that and the pickle of what the layer must return, a function,
    #: or ``(namespace, name, overload)`` of an operator.
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> list[ValueRef | WeightRef]:
        """What it reads."""
        leaves: list[Any] = []
        map_aggregate((self.args, dict(self.kwargs)), leaves.append)
        return [leaf for leaf in leaves if isinstance(leaf, (ValueRef, WeightRef))]


@dataclass(frozen=True)
class Program:
    """Steps in the order they run."""

    #: Names of what the first step may read.
    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    #: The leaves of the model's output: a `ValueRef`, or the value itself.
    outputs: tuple[Any, ...]
    #: What is known of values, by name.
    values: Mapping[str, Value]

    @cached_property
    def _defined(self) -> dict[str, int]:
        """Place after which each value exists."""
        defined = dict.fromkeys(self.inputs, 0)
        defined.update({step.name: n + 1 for n, step in enumerate(self.steps)})
        return defined

    @cached_property
    def _last(self) -> dict[str, int]:
        """Last place that each value must reach."""
        last = {}
        for place, step in enumerate(self.steps):
            last.update({read.name: place + 1 for read in step.reads})
        for leaf in self.outputs:
            if isinstance(leaf, ValueRef):
                last[leaf.name] = len(self.steps) + 1
        return last

    def live(self, place: int) -> tuple[str, ...]:
        """Return the values that cross a cut before step `place`, in order."""
        last = self._last
        return tuple(
            name
            for name, made in self._defined.items()
            if made <= place < last.get(name, 0)
        )
