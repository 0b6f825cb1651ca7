"""Splitting by export: the general tier, and the one with own modules put in."""

from __future__ import annotations

import functools
from itertools import chain as chained
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.assemble import Parts, assemble
from dask_infer.model.split.call import Call
from dask_infer.model.split.candidates import candidates, layers_around
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.exported import Graph, GraphReader, export
from dask_infer.model.split.guards import Guard, guards_of
from dask_infer.model.split.opened import Original
from dask_infer.model.split.outputs import take_apart
from dask_infer.model.split.own_modules import with_modules
from dask_infer.model.split.program import Value
from dask_infer.model.split.refusals import CannotSplit, cause_of, is_fixed
from dask_infer.model.split.swallowed import Swallowed


def by_export(original: Original, call: Call, cuts: tuple[str, ...] | None) -> Chain:
    """Export the model on fake parameters, and cut the graph.

    Raises
    ------
    CannotSplit
        If torch cannot follow its code.
    """
    module, name = original.module, original.spec.name
    paths = list(cuts) if cuts else candidates(module)
    able = _able(module, paths)
    try:
        graph, structure, guards = _traced(original, call, able)
    except Exception as error:
        reason = f"torch cannot follow it: {cause_of(error)}"
        raise CannotSplit(name, reason) from error
    places = places_of(name, graph, paths, cuts is not None)
    if cuts is None:
        places = _without_peaks(module, graph, places)
    whole = _wholes(graph, able, places)
    owned = {path: _owned(module.get_submodule(path), path) for path in whole}
    program, moved, used = with_modules(graph, whole, owned)
    parts = Parts(
        program,
        {_layer(path, used): moved[place] for path, place in places.items()},
        graph.inputs,
        structure,
        dict(graph.constants),
        modules=used,
        tier="modules" if used else "export",
        guards=guards,
    )
    return assemble(original, call, parts, exact_cuts=cuts is not None)


def _able(module: nn.Module, paths: list[str]) -> list[str]:
    """Return the modules that may run as they are: pieces, and layers around them."""
    named = dict(module.named_modules(remove_duplicate=False))
    pieces = dict.fromkeys(chained(candidates(module), paths))
    around = chained.from_iterable(layers_around(module, path) for path in pieces)
    containers = (nn.ModuleList, nn.ModuleDict)
    return [
        path
        for path in dict.fromkeys(chained(pieces, around))
        if named[path]._modules and not isinstance(named[path], containers)
    ]


def _wholes(graph: Graph, able: list[str], places: dict[str, int]) -> list[str]:
    """Return the largest modules with no cut inside."""
    free = []
    for path in able:
        first, last = graph.spans.get(path, (0, 0))
        if not any(first < place < last for place in places.values()):
            free.append(path)
    return [p for p in free if not any(p.startswith(f"{outer}.") for outer in free)]


def _layer(path: str, used: list[str]) -> str:
    """Return the module that a block starts with: the piece's own, or that around."""
    return next((outer for outer in used if path.startswith(f"{outer}.")), path)


def _without_peaks(
    module: nn.Module, graph: Graph, places: dict[str, int]
) -> dict[str, int]:
    """Drop cuts inside a layer where more values cross than before and after it.

    That is how blocks with a residual inside a list inside a layer look.
    """
    ordered = sorted(places, key=lambda path: places[path])
    crossings = graph.program.crossings(tuple(places[path] for path in ordered))
    known = graph.program.values
    counts = [sum(isinstance(known.get(n), Value) for n in c) for c in crossings]
    kept = {}
    for place, path in enumerate(ordered):
        lower = [count < counts[place] for count in counts]
        is_peak = any(lower[:place]) and any(lower[place + 1 :])
        if not (is_peak and layers_around(module, path)):
            kept[path] = places[path]
    return kept


def _owned(module: nn.Module, path: str) -> frozenset[str]:
    return frozenset(name for name, _ in named_tensors(module, path))


def _traced(
    original: Original, call: Call, whole: list[str]
) -> tuple[Graph, Any, tuple[Guard, ...]]:
    """Export, with the calls of whole modules where torch can keep them."""
    try:
        return _read(original, call, tuple(whole))
    except Exception as error:
        if not whole or is_fixed(error):
            raise
        return _read(original, call, ())


def _read(
    original: Original, call: Call, preserve: tuple[str, ...]
) -> tuple[Graph, Any, tuple[Guard, ...]]:
    """Return the graph, the structure of the output, and the sizes it is right for."""
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    module = original.traceable(mode)
    swallowed = Swallowed()
    structures = _flattening(module, swallowed)
    args, kwargs = call.tensors()
    exported = export(module, args, {**kwargs, **call.extra}, call.dynamic, preserve)
    swallowed.check()
    guards = guards_of(exported._guards_code, original.module.forward, call.examples)
    return GraphReader(exported, call.has_tokens).read(), structures[-1], guards


def _flattening(module: nn.Module, swallowed: Swallowed) -> list[Any]:
    """Let a traced copy return the leaves of its output; list their structures."""
    forward = module.forward
    structures: list[Any] = []

    @functools.wraps(forward)
    def flattened(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        swallowed.watch((args, kwargs))
        leaves: list[Any] = []
        structures.append(take_apart(forward(*args, **kwargs), leaves))
        return tuple(leaves)

    module.forward = flattened
    return structures


def places_of(
    name: str, graph: Graph, paths: list[str], chosen: bool
) -> dict[str, int]:
    """Return the place of the first step of each module that runs."""
    places = {}
    for path in paths:
        if path in graph.spans:
            places[path] = graph.spans[path][0]
        elif chosen:
            reason = f'it never runs its module "{path}"'
            raise CannotSplit(name, reason, "cut before modules that it runs")
    return places
