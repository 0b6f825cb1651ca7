"""A model written as steps: calls of its layers, and of what is between them.

It has no weights, survives pickle without tracing again, and imports nothing of the
user's until a stage is built from an interval of it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from dask_infer.model.identity import pickling
from dask_infer.model.split.layer_returns import ReturnedLeaves


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

    def carry(self, place: int, rows: int, tokens: int) -> dict[str, Any]:
        """Return what crosses there for a batch, on meta, as far as it is known."""
        known = {n: self.values[n] for n in self.live(place) if n in self.values}
        return {name: value.on_meta(rows, tokens) for name, value in known.items()}

    def weights(self, start: int, stop: int) -> list[str]:
        """Return the names of the weights that steps [start, stop) read themselves."""
        reads = (read for step in self.steps[start:stop] for read in step.reads)
        return [read.name for read in reads if isinstance(read, WeightRef)]

    def layers(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Return the paths of the layers that steps [start, stop) call."""
        calls = (step for step in self.steps[start:stop] if step.kind == "layer")
        return sorted({step.target for step in calls})

    def stage(
        self,
        start: int,
        stop: int,
        layers: Mapping[str, nn.Module],
        weights: Mapping[str, torch.Tensor],
        device: torch.device,
    ) -> fx.GraphModule:
        """Return steps [start, stop) as a module from carry to carry.

        Parameters
        ----------
        layers
            The model's own modules that steps call, by path.
        weights
            What the steps read themselves, on meta: parameters, and buffers.
        device
            Where tensors that the steps make will live.
        """
        root, graph = nn.Module(), fx.Graph()
        for path in self.layers(start, stop):
            parent, name = _parent(root, path)
            if name not in parent._modules:  # it may be part of another layer
                parent.add_module(name, layers[path])
        for path, tensor in weights.items():
            parent, name = _parent(root, path)
            if isinstance(tensor, nn.Parameter) and not hasattr(parent, name):
                parent.register_parameter(name, tensor)
            elif not hasattr(parent, name):
                parent.register_buffer(name, tensor, persistent=False)
        carry = graph.placeholder("carry")
        nodes = {
            name: graph.call_function(operator.getitem, (carry, name))
            for name in self.live(start)
        }

        def leaf(value: Any) -> Any:
            if isinstance(value, ValueRef):
                return nodes[value.name]
            if isinstance(value, WeightRef):
                return graph.get_attr(value.name)
            return device if isinstance(value, torch.device) else value

        for step in self.steps[start:stop]:
            args = map_aggregate(step.args, leaf)
            kwargs = map_aggregate(dict(step.kwargs), leaf)
            nodes[step.name] = _call(root, graph, step, args, kwargs)
        graph.output({name: nodes[name] for name in self.live(stop)})
        return fx.GraphModule(root, graph, "Stage").eval()


def nbytes_of(carry: Mapping[str, Any]) -> int:
    """Return the bytes of the tensors of a carry."""
    tensors = (v for v in carry.values() if isinstance(v, torch.Tensor))
    return sum(tensor.nbytes for tensor in tensors)


def _call(root: nn.Module, graph: fx.Graph, step: Step, args: Any, kwargs: Any) -> Any:
    """Add the call of a step to the graph of a stage."""
    if step.kind == "layer":
        return graph.call_module(step.target, args, kwargs)
    if step.kind == "leaves":
        path, learned = step.target
        name = f"_leaves_of_{step.name}"
        root.add_module(name, ReturnedLeaves(path, *pickling.from_bytes(learned)))
        return graph.call_module(name, args)
    function = step.target
    if step.kind == "operator":
        namespace, name, overload = step.target
        function = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    return graph.call_function(function, args, kwargs)


def _parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that is to hold `path`, made where it is missing."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root, last
