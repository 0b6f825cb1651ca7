"""Exported programs (``*.pt2``): split as they are, by the modules they remember."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from dask_infer.model.formats.exported_program import check_dtype, read_program
from dask_infer.model.formats.torchscript import file_of
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split.assemble import Parts, assemble
from dask_infer.model.split.by_export import places_of
from dask_infer.model.split.call import Call
from dask_infer.model.split.candidates import candidates, check_cuts
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.exported import Graph, GraphReader, Key, decomposed
from dask_infer.model.split.opened import Original
from dask_infer.model.split.outputs import Leaf, Node, take_apart
from dask_infer.model.split.program import Size, Value
from dask_infer.model.split.refusals import CannotSplit, cause_of
from dask_infer.spec import ModelSpec


def by_program(
    spec: ModelSpec,
    examples: dict[Key, Example],
    dtype: torch.dtype | None,
    cuts: tuple[str, ...] | None,
) -> Chain:
    """Split the program of a file; it is read whole once, on the client.

    Raises
    ------
    CannotSplit
        If it takes other arguments, or one number of rows or tokens alone.
    """
    with file_of(spec) as path:
        exported = read_program(path, spec.trust)
    check_dtype(spec, exported, dtype)
    taken = _taken(spec, exported, examples)
    try:
        with torch.no_grad():
            graph = GraphReader(
                decomposed(exported), lambda k: _padded(taken[k])
            ).read()
        structure = _structure(exported)
    except Exception as error:
        reason = f"its program cannot be cut: {cause_of(error)}"
        raise CannotSplit(spec.name, reason) from error
    _check_sizes(spec, graph, taken)
    original = Original(spec, _tree(graph), None)
    check_cuts(spec.name, original.module, cuts)
    paths = list(cuts) if cuts else candidates(original.module)
    places = places_of(spec.name, graph, paths, cuts is not None)
    dropped = tuple(str(key) for key in examples if key not in taken)
    call = Call(spec.name, taken, {}, dropped, original.floating)
    parts = Parts(
        graph.program, places, graph.inputs, structure, graph.constants, [], "export"
    )
    return assemble(original, call, parts, exact_cuts=cuts is not None)


def _padded(example: Example) -> bool:
    return None in example.shape


def _taken(
    spec: ModelSpec, exported: ExportedProgram, examples: dict[Key, Example]
) -> dict[Key, Example]:
    """Return the arguments that the program takes, by the place they have there."""
    in_spec: Any = exported.call_spec.in_spec
    args, kwargs = pytree.tree_unflatten(range(in_spec.num_leaves), in_spec)
    wanted: list[Key] = [*range(len(args)), *kwargs]
    taken = {k: ex for k, ex in examples.items() if k in wanted or not ex.optional}
    if set(taken) == set(wanted):
        return taken
    shown = ", ".join(map(str, taken))
    raise CannotSplit(
        spec.name,
        f"it was exported for the arguments {', '.join(map(str, wanted))} (positions "
        f"from 0, or keywords), and columns give {shown}",
        "name the columns in that way",
    )


def _structure(exported: ExportedProgram) -> Leaf | Node:
    out_spec: Any = exported.call_spec.out_spec
    leaves: list[Any] = []
    count = out_spec.num_leaves
    found = take_apart(pytree.tree_unflatten(list(range(count)), out_spec), leaves)
    if leaves != list(range(count)):
        raise TypeError("it returns a container whose order is its own")
    return found


def _check_sizes(spec: ModelSpec, graph: Graph, taken: dict[Key, Example]) -> None:
    """Refuse programs that were exported for one number of rows, or of tokens."""
    for key, name in graph.inputs.items():
        value = graph.program.values[name]
        assert isinstance(value, Value)
        axes = {"rows": 0, "tokens": 1} if _padded(taken[key]) else {"rows": 0}
        for what, axis in axes.items():
            size = value.shape[axis]
            if size == Size(size.fixed):
                raise CannotSplit(
                    spec.name,
                    f"it was exported for exactly {size.fixed} {what}",
                    f"export it again with a dynamic dimension {axis}",
                )


def _tree(graph: Graph) -> nn.Module:
    """Return modules that hold what the program's did, under the same names.

    Items of lists have numbers for names.
    """
    paths = [*graph.spans, *(name.rpartition(".")[0] for name in graph.named)]
    children: dict[str, list[str]] = {"": []}
    for path in paths:
        while path:
            parent, _, name = path.rpartition(".")
            known = children.setdefault(parent, [])
            children.setdefault(path, [])
            if name not in known:
                known.append(name)
            path = parent
    root = _node("", children)
    for name in sorted(graph.named):
        path, _, leaf = name.rpartition(".")
        tensor = torch.empty_like(graph.held[name], device="meta")
        if isinstance(graph.held[name], nn.Parameter):
            parameter = nn.Parameter(tensor, requires_grad=False)
            root.get_submodule(path).register_parameter(leaf, parameter)
        else:
            root.get_submodule(path).register_buffer(leaf, tensor)
    return root


def _node(path: str, children: dict[str, list[str]]) -> nn.Module:
    names = children[path]
    numbered = bool(names) and all(name.isdigit() for name in names)
    node = nn.ModuleList() if numbered else nn.Module()
    for name in sorted(names, key=int) if numbered else names:
        below = f"{path}.{name}" if path else name
        node.add_module(name, _node(below, children))
    return node
