"""Splitting by export: the general tier, and the one with own modules put in."""

from __future__ import annotations

import functools
from itertools import chain as chained
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from dask_infer.model.skeleton import named_tensors
from dask_infer.model.split.assemble import Parts, assemble
from dask_infer.model.split.call import Call
from dask_infer.model.split.candidates import candidates
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.exported import Graph, GraphReader, export
from dask_infer.model.split.opened import Original
from dask_infer.model.split.outputs import take_apart
from dask_infer.model.split.own_modules import with_modules
from dask_infer.model.split.refusals import CannotSplit, cause_of


def by_export(original: Original, call: Call, cuts: tuple[str, ...] | None) -> Chain:
    """Export the model on fake parameters, and cut the graph.

    Raises
    ------
    CannotSplit
        If torch cannot follow its code.
    """
    module = original.module
    name = original.spec.name
    paths = list(cuts) if cuts else candidates(module)
    whole = _wholes(module, paths)
    try:
        graph, structure = _traced(original, call, whole)
    except Exception as error:
        reason = f"torch cannot follow it: {cause_of(error)}"
        raise CannotSplit(name, reason) from error
    places = _places(name, graph, paths, cuts is not None)
    owned = {path: _owned(module.get_submodule(path), path) for path in whole}
    program, moved, used = with_modules(graph, whole, owned)
    bounds = {path: moved[place] for path, place in places.items()}
    parts = Parts(
        program,
        bounds,
        graph.inputs,
        structure,
        dict(graph.constants),
        modules=used,
        tier="modules" if used else "export",
    )
    return assemble(original, call, parts, exact_cuts=cuts is not None)


def _wholes(module: nn.Module, paths: list[str]) -> list[str]:
    """Return the modules to run as they are: whole pieces with no cut inside."""
    named = dict(module.named_modules(remove_duplicate=False))
    pieces = dict.fromkeys(chained(candidates(module), paths))
    free = [
        piece
        for piece in pieces
        if named[piece]._modules
        and not isinstance(named[piece], (nn.ModuleList, nn.ModuleDict))
        and not any(path.startswith(f"{piece}.") for path in paths)
    ]
    return [p for p in free if not any(p.startswith(f"{outer}.") for outer in free)]


def _owned(module: nn.Module, path: str) -> frozenset[str]:
    return frozenset(name for name, _ in named_tensors(module, path))


def _traced(original: Original, call: Call, whole: list[str]) -> tuple[Graph, Any]:
    """Export, with the calls of whole modules where torch can keep them."""
    try:
        return _read(original, call, tuple(whole))
    except Exception:
        if not whole:
            raise
        return _read(original, call, ())


def _read(
    original: Original, call: Call, preserve: tuple[str, ...]
) -> tuple[Graph, Any]:
    """Return the graph, and the structure of the output."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    module = original.traceable(mode)
    structures = _flattening(module)
    args, kwargs = call.tensors()
    exported = export(module, args, {**kwargs, **call.extra}, call.dynamic, preserve)
    return GraphReader(exported, call.has_tokens).read(), structures[-1]


def _flattening(module: nn.Module) -> list[Any]:
    """Let a traced copy return the leaves of its output; list their structures."""
    forward = module.forward
    structures: list[Any] = []

    @functools.wraps(forward)
    def flattened(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        leaves: list[Any] = []
        structures.append(take_apart(forward(*args, **kwargs), leaves))
        return tuple(leaves)

    module.forward = flattened
    return structures


def _places(name: str, graph: Graph, paths: list[str], chosen: bool) -> dict[str, int]:
    """Return the place of the first step of each module that runs."""
    places = {}
    for path in paths:
        if path in graph.spans:
            places[path] = graph.spans[path][0]
        elif chosen:
            reason = f'it never runs its module "{path}"'
            raise CannotSplit(name, reason, "cut before modules that it runs")
    return places
