"""A stage: an interval of a program as a torch module, its tensors on meta."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from dask_infer.errors import OutputError
from dask_infer.model.identity import pickling
from dask_infer.model.split.export.layer_signature import (
    Input,
    Made,
    Signature,
    SizeRule,
)
from dask_infer.model.split.nesting import take_apart
from dask_infer.model.split.program import Program, Step, ValueRef, WeightRef


class ReturnedLeaves(nn.Module):
    """Takes apart what a layer returned, and checks that it is what was learned of it.

    A layer may do otherwise at sizes that it was not run at when the model was split:
    crop to 512 tokens, or return None. The code after it was exported for what was
    learned, so anything else would give wrong values.

    Parameters
    ----------
    path, signature
        The layer, and what was learned of it.
    has_glue
        Whether code of the model's own was exported for the sizes that it returns.
    """

    def __init__(self, path: str, signature: Signature, has_glue: bool) -> None:
        super().__init__()
        self._path, self._signature, self._has_glue = path, signature, has_glue

    def forward(self, output: Any, tensors: list[Any], sizes: list[int]) -> list[Any]:
        """Return the leaves of an output; `tensors` and `sizes` are the arguments'."""
        leaves: list[Any] = []
        structure = take_apart(output, leaves)
        known = [*(size for tensor in tensors for size in tensor.shape), *sizes]
        if structure == self._signature.structure and all(
            self._is_as_learned(leaf, learned, tensors, known)
            for leaf, learned in zip(leaves, self._signature.leaves, strict=True)
        ):
            return leaves
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise OutputError(
            f'the layer "{self._path}", called with {shapes}, returns something else '
            "than at the sizes at which the model was split (another shape, dtype, "
            'number or structure): use parallel="data", or batches of other sizes'
        )

    def _is_as_learned(
        self, leaf: Any, learned: Any, tensors: list[Any], known: list[int]
    ) -> bool:
        if isinstance(learned, Input):
            return leaf is tensors[learned.place]
        if isinstance(learned, SizeRule):
            return learned.size(known) in (leaf, None)
        if not isinstance(learned, Made):
            return type(leaf) is type(learned) and bool(leaf == learned)
        if not isinstance(leaf, torch.Tensor):
            return False
        rules = learned.shape
        return not self._has_glue or (
            leaf.dtype == learned.dtype
            and leaf.dim() == len(rules)
            and all(
                rule.size(known) in (size, None)
                for size, rule in zip(leaf.shape, rules, strict=True)
            )
        )


def build_stage(
    program: Program,
    start: int,
    stop: int,
    *,
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
        What the steps read directly, on meta: parameters, and buffers.
    device
        Where tensors that the steps make will live.
    """
    root, graph = nn.Module(), fx.Graph()
    carry = graph.placeholder("carry")
    nodes = {
        name: graph.call_function(operator.getitem, (carry, name))
        for name in program.live(start)
    }
    steps = program.steps[start:stop]
    for path in sorted({step.target for step in steps if step.kind == "layer"}):
        parent, name = _parent(root, path)
        if name not in parent._modules:  # it may be part of another layer
            parent.add_module(name, layers[path])

    def leaf(value: Any) -> Any:
        if isinstance(value, ValueRef):
            return nodes[value.name]
        if isinstance(value, WeightRef):
            _hold(root, value.name, weights[value.name])
            return graph.get_attr(value.name)
        return device if isinstance(value, torch.device) else value

    for step in steps:
        if step.kind == "leaves":
            path, learned = step.target
            check = ReturnedLeaves(path, *pickling.from_bytes(learned))
            root.add_module(f"_leaves_of_{step.name}", check)
        nodes[step.name] = _call(graph, step, leaf)
    graph.output({name: nodes[name] for name in program.live(stop)})
    stage = fx.GraphModule(root, graph, "Stage")
    stage.eval()
    return stage


def _call(graph: fx.Graph, step: Step, leaf: Any) -> fx.Node:
    args = fx.node.map_aggregate(step.args, leaf)
    kwargs = fx.node.map_aggregate(dict(step.kwargs), leaf)
    if step.kind == "layer":
        return graph.call_module(step.target, args, kwargs)
    if step.kind == "leaves":
        return graph.call_module(f"_leaves_of_{step.name}", args)
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


def _hold(root: nn.Module, path: str, tensor: torch.Tensor) -> None:
    parent, last = _parent(root, path)
    if isinstance(tensor, nn.Parameter) and not hasattr(parent, last):
        parent.register_parameter(last, tensor)
    elif not hasattr(parent, last):
        parent.register_buffer(last, tensor, persistent=False)
