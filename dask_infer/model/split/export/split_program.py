"""Exported programs (``*.pt2``): read as they are, with the modules they remember."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split.export.exported_graph import ExportedGraph, functional
from dask_infer.model.split.export.split_source import SplitSource
from dask_infer.model.split.nesting import Structure, take_apart
from dask_infer.model.split_refusals import CannotSplit, cause_of
from dask_infer.spec import ArgumentKey, ModelSpec


def read_program(
    spec: ModelSpec, exported: ExportedProgram, examples: Mapping[ArgumentKey, Example]
) -> tuple[SplitSource, ExportedGraph]:
    """Return a program as what can be split, and its graph.

    Raises
    ------
    CannotSplit
        If it takes other arguments, or one number of rows or tokens alone.
    """
    taken = _taken(spec, exported, examples)
    try:
        structure = _structure(exported)
        graph = ExportedGraph(functional(exported), taken, {}, structure)
    except Exception as error:
        reason = f"its program cannot be cut: {cause_of(error)}"
        raise CannotSplit(spec.name, reason) from error
    _check_sizes(spec, graph, taken)
    dropped = tuple(str(key) for key in examples if key not in taken)
    return SplitSource(spec, _tree(graph), None, taken, dropped), graph


def _taken(
    spec: ModelSpec, exported: ExportedProgram, examples: Mapping[ArgumentKey, Example]
) -> dict[ArgumentKey, Example]:
    """Return the arguments that the program takes, by the place they have there."""
    in_spec: Any = exported.call_spec.in_spec
    args, kwargs = pytree.tree_unflatten(range(in_spec.num_leaves), in_spec)
    wanted: list[ArgumentKey] = [*range(len(args)), *kwargs]
    taken = {k: ex for k, ex in examples.items() if k in wanted or not ex.optional}
    if set(taken) == set(wanted):
        return taken
    shown = ", ".join(map(str, taken))
    raise CannotSplit(
        spec.name,
        f"it was exported for the arguments {', '.join(map(str, wanted))} (positions "
        f"from 0, or keywords), and columns give {shown}",
        "name the columns so",
    )


def _structure(exported: ExportedProgram) -> Structure:
    out_spec: Any = exported.call_spec.out_spec
    leaves: list[Any] = []
    numbers = list(range(out_spec.num_leaves))
    found = take_apart(pytree.tree_unflatten(numbers, out_spec), leaves)
    if leaves != numbers:
        raise TypeError("it returns a container whose order is its own")
    return found


def _check_sizes(
    spec: ModelSpec, graph: ExportedGraph, taken: Mapping[ArgumentKey, Example]
) -> None:
    """Refuse programs that were exported for one number of rows, or of tokens."""
    for key, name in graph.inputs.items():
        shape = graph.values[name].shape
        axes = {"rows": 0, "tokens": 1} if None in taken[key].shape else {"rows": 0}
        for what, axis in axes.items():
            if isinstance(shape[axis], int):
                raise CannotSplit(
                    spec.name,
                    f"it was exported for exactly {shape[axis]} {what}",
                    f"export it again with a dynamic dimension {axis}",
                )


def _tree(graph: ExportedGraph) -> nn.Module:
    """Return modules that hold what the program's did, under the same names."""
    root = nn.Module()
    for path in (*graph.places, *graph.weights):
        *parents, last = path.split(".")
        holder = root
        for name in parents:
            if name not in holder._modules:
                holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        weight = graph.weights.get(path)
        if weight is None:
            if last and last not in holder._modules:
                holder.add_module(last, nn.Module())
        elif isinstance(weight, nn.Parameter):
            empty = torch.empty_like(weight, device="meta")
            holder.register_parameter(last, nn.Parameter(empty, requires_grad=False))
        else:
            holder.register_buffer(last, torch.empty_like(weight, device="meta"))
    return root
