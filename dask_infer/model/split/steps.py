"""A model written as steps: calls of its layers, and of what is between them.

They have no weights, survive pickle without tracing again, and import nothing of the
user's until a stage is built from an interval of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
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
        """Return the sizes, or the number, for a batch."""
        names = {"rows": rows, "tokens": tokens, "math": math, "min": min, "max": max}
        return [
            int(eval(size, {"__builtins__": {}}, names))
            if isinstance(size, str)
            else size
            for size in self.shape
        ]

    def on_meta(self, rows: int, tokens: int) -> torch.Tensor | int:
        """Return the number for a batch, or a tensor without memory."""
        sizes = self.sizes(rows, tokens)
        if self.dtype is None:
            return sizes[0]
        return torch.empty(sizes, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class Step:
    """One call."""

    name: str
    kind: Literal["layer", "operator", "function"]
    #: Path of a layer, ``(namespace, name, overload)`` of an operator, or a function.
    target: Any
    #: Of a layer, the tensors and the sizes among its arguments.
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    #: Pickle of a layer's other arguments, and of what it must return.
    call: bytes = b""

    @property
    def reads(self) -> list[ValueRef | WeightRef]:
        """What it reads."""
        leaves: list[Any] = []
        map_aggregate((self.args, dict(self.kwargs)), leaves.append)
        return [leaf for leaf in leaves if isinstance(leaf, (ValueRef, WeightRef))]

    def function(self) -> Any:
        """Return the operator or the function that it calls."""
        if self.kind == "function":
            return self.target
        namespace, name, overload = self.target
        return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def weights_of(steps: Iterable[Step]) -> list[str]:
    """Return the names of the weights that steps read themselves."""
    reads = (read for step in steps for read in step.reads)
    return [read.name for read in reads if isinstance(read, WeightRef)]


def layers_of(steps: Iterable[Step]) -> list[str]:
    """Return the paths of the layers that steps call, in order."""
    calls = (step.target for step in steps if step.kind == "layer")
    return list(dict.fromkeys(calls))


def nbytes_of(carry: Mapping[str, Any]) -> int:
    """Return the bytes of the tensors of a carry."""
    tensors = (v for v in carry.values() if isinstance(v, torch.Tensor))
    return sum(tensor.nbytes for tensor in tensors)
