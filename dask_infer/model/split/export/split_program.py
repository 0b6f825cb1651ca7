"""Exported programs (``*.pt2``): split as they are, by the modules they remember."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split.assemble import assemble
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.export.candidates import candidates, check_cuts
from dask_infer.model.split.export.exported_graph import Graph, GraphReader, functional
from dask_infer.model.split.export.glue import places_of
from dask_infer.model.split.export.split_source import SplitSource, is_padded
from dask_infer.model.split.nesting import Structure, take_apart
from dask_infer.model.split_refusals import CannotSplit, cause_of
from dask_infer.spec import ArgumentKey, ModelSpec


def split_program(
    spec: ModelSpec,
    exported: ExportedProgram,
    examples: dict[ArgumentKey, Example],
    cuts: tuple[str, ...] | None,
) -> Chain:
    """Split a program.

    Raises
    ------
    CannotSplit
        If it takes other arguments, or one number of rows or tokens alone.
    """
    taken = _taken(spec, exported, examples)
    try:
        reader = GraphReader(functional(exported, {}), _structure(exported), taken, {})
        graph = reader.read()
    except Exception as error:
        reason = f"its program cannot be cut: {cause_of(error)}"
        raise CannotSplit(spec.name, reason) from error
    _check_sizes(spec, graph, taken)
    dropped = tuple(str(key) for key in examples if key not in taken)
    source = SplitSource(spec, _tree(graph), None, taken, dropped)
    check_cuts(spec.name, source.module, cuts)
    paths = list(cuts) if cuts else candidates(source.module)
    places = places_of(spec.name, graph, paths, cuts)
    return assemble(source, graph, places, exact_cuts=cuts is not None)


def _taken(
    spec: ModelSpec, exported: ExportedProgram, examples: dict[ArgumentKey, Example]
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
    count = out_spec.num_leaves
    found = take_apart(pytree.tree_unflatten(list(range(count)), out_spec), leaves)
    if leaves != list(range(count)):
        raise TypeError("it returns a container whose order is its own")
    return found


def _check_sizes(
    spec: ModelSpec, graph: Graph, taken: dict[ArgumentKey, Example]
) -> None:
    """Refuse programs that were exported for one number of rows, or of tokens."""
    for key, name in graph.inputs.items():
        shape = graph.program.values[name].shape
        axes = {"rows": 0, "tokens": 1} if is_padded(taken[key]) else {"rows": 0}
        for what, axis in axes.items():
            if isinstance(shape[axis], int):
                raise CannotSplit(
                    spec.name,
                    f"it was exported for exactly {shape[axis]} {what}",
                    f"export it again with a dynamic dimension {axis}",
                )


def _tree(graph: Graph) -> nn.Module:
    """Return modules that hold what the program's did, under the same names.

    Items of lists have numbers for names.
    """
    children: dict[str, dict[str, None]] = {"": {}}
    weights = [(*name.rpartition("."), graph.weights[name]) for name in graph.weights]
    for path in (*graph.places, *(parent for parent, *_ in weights)):
        names = path.split(".") if path else []
        for count, name in enumerate(names):
            children.setdefault(".".join(names[:count]), {})[name] = None

    def node(path: str) -> nn.Module:
        names = list(children.get(path, ()))
        is_list = bool(names) and all(name.isdigit() for name in names)
        made = nn.ModuleList() if is_list else nn.Module()
        for name in sorted(names, key=int) if is_list else names:
            made.add_module(name, node(f"{path}.{name}" if path else name))
        return made

    root = node("")
    for path, _, name, weight in weights:
        empty = torch.empty_like(weight, device="meta")
        holder = root.get_submodule(path)
        if isinstance(weight, nn.Parameter):
            parameter = nn.Parameter(empty, requires_grad=False)
            holder.register_parameter(name, parameter)
        else:
            holder.register_buffer(name, empty)
    return root
