"""A stage: an interval of a program as a torch module, its tensors on meta."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from dask_infer.model.split.program import Held, Program, Ref, Step, replaced


def build_stage(
    program: Program,
    start: int,
    stop: int,
    *,
    modules: Mapping[str, nn.Module],
    held: Mapping[str, torch.Tensor],
    device: torch.device,
) -> fx.GraphModule:
    """Return steps [start, stop) as a module from carry to carry.

    Parameters
    ----------
    modules
        The model's own modules that steps call, by path.
    held
        What the steps read directly, on meta: parameters, and buffers.
    device
        Where tensors that the steps make will live.
    """
    writer = _Writer(program, modules, held, device)
    return writer.write(start, stop)


def leaf(output: Any, place: int) -> Any:
    """Return one leaf of a module's output."""
    return pytree.tree_leaves(output)[place]


class _Writer:
    def __init__(
        self,
        program: Program,
        modules: Mapping[str, nn.Module],
        held: Mapping[str, torch.Tensor],
        device: torch.device,
    ) -> None:
        self.program, self.modules, self.held = program, modules, held
        self.device = device
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self.read: dict[str, fx.Node] = {}

    def write(self, start: int, stop: int) -> fx.GraphModule:
        carry = self.graph.placeholder("carry")
        for name in self.program.live(start):
            node = self.graph.call_function(operator.getitem, (carry, name))
            self.nodes[name] = node
        steps = self.program.steps[start:stop]
        for path in sorted({s.target for s in steps if s.kind == "module"}):
            _attach(self.root, path, self.modules[path])
        for step in steps:
            self.nodes[step.name] = self._call(step)
        self.graph.output({n: self.nodes[n] for n in self.program.live(stop)})
        stage = fx.GraphModule(self.root, self.graph, "Stage")
        stage.eval()
        return stage

    def _call(self, step: Step) -> fx.Node:
        args = tuple(replaced(arg, self._leaf) for arg in step.args)
        kwargs = replaced(step.kwargs, self._leaf)
        if step.kind == "module":
            return self.graph.call_module(step.target, args, kwargs)
        if step.kind == "method":
            return self.graph.call_method(step.target, args, kwargs)
        function = step.target
        if step.kind == "operator":
            function = operator_of(step.target)
        return self.graph.call_function(function, args, kwargs)

    def _leaf(self, value: Any) -> Any:
        if isinstance(value, Ref):
            return self.nodes[value.name]
        if isinstance(value, Held):
            return self._held(value.name)
        if isinstance(value, torch.device):
            return self.device
        return value

    def _held(self, name: str) -> fx.Node:
        if name not in self.read:
            _hold(self.root, name, self.held[name])
            self.read[name] = self.graph.get_attr(name)
        return self.read[name]


def operator_of(target: tuple[str, str, str]) -> Any:
    """Return the torch operator of its three names."""
    namespace, name, overload = target
    return getattr(getattr(getattr(torch.ops, namespace), name), overload)


def _parent(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that is to hold `path`, made where it is missing."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        child = root._modules[name]
        assert child is not None
        root = child
    return root, last


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, last = _parent(root, path)
    if last not in parent._modules:
        parent.add_module(last, module)


def _hold(root: nn.Module, path: str, tensor: torch.Tensor) -> None:
    parent, last = _parent(root, path)
    if hasattr(parent, last):
        return
    if isinstance(tensor, nn.Parameter):
        parent.register_parameter(last, tensor)
    else:
        parent.register_buffer(last, tensor, persistent=False)
