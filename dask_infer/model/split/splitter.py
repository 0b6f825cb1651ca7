"""A model split into a chain of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from torch import nn

from dask_infer.model.formats.exported_program import check_dtype
from dask_infer.model.identity import pickling
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import parse_dtype
from dask_infer.model.shapes.call_arguments import by_key
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.shapes.padding import pad_token, reads_padding
from dask_infer.model.shapes.sandbox import sandbox
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split.chain import Block, Chain
from dask_infer.model.split.export.candidates import (
    candidates,
    check_cuts,
    items_around,
    opaque_layers,
    outermost,
)
from dask_infer.model.split.export.export_glue import export_glue
from dask_infer.model.split.export.exported_graph import ExportedGraph
from dask_infer.model.split.export.split_program import read_program
from dask_infer.model.split.export.split_source import SplitSource
from dask_infer.model.split.steps import layers_of, nbytes_of, weights_of
from dask_infer.model.split.tensor_table import named_once
from dask_infer.model.split_refusals import CannotSplit, cause_of
from dask_infer.spec import ModelSpec
from dask_infer.spec.token_rules import TokenRules

#: Rows at which bytes a row are counted: masks of positions do not depend on rows.
_ROWS = 64


def split(
    spec: ModelSpec,
    live: object | None,
    args: Sequence[Example],
    kwargs: Mapping[str, Example],
    *,
    call_kwargs: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    cuts: tuple[str, ...] | None = None,
) -> Chain:
    """Split a model into layer groups, without its weights, data or a real call.

    Parameters
    ----------
    spec
        The model.
    live
        The caller's module, which is left untouched; for a factory what builds it when
        called. None to read the spec's own.
    args, kwargs
        One row of each argument.
    call_kwargs
        Extra keyword arguments of every call, which become part of the chain.
    dtype
        Floating dtype that the model runs in; None as it is.
    cuts
        Modules before which to cut, and nowhere else; None for every sensible place.

    Raises
    ------
    CannotSplit
        If it cannot be split exactly; names the cause, the line and the remedy.
    """
    examples = by_key(args, kwargs)
    with sandbox():
        wanted = parse_dtype(dtype)
        model = format_of(spec).open_to_split(spec, live)
        if isinstance(model, nn.Module):
            source = SplitSource.of(spec, model, wanted)
            return _split(source.called(examples, dict(call_kwargs or {})), cuts)
        check_dtype(spec, model, wanted)
        source, graph = read_program(spec, model, examples)
        check_cuts(spec.name, source.module, cuts)
        return _cut(
            source, graph, cuts or candidates(source.module), is_exact=bool(cuts)
        )


def _split(source: SplitSource, cuts: tuple[str, ...] | None) -> Chain:
    """Export the code around the layers, and cut between their calls."""
    module, name = source.module, source.spec.name
    check_cuts(name, module, cuts)
    layers, paths = opaque_layers(module, cuts or ()), cuts or candidates(module)
    try:
        graph = export_glue(source, layers)
    except Exception as error:
        refusal = CannotSplit(name, f"torch cannot follow it: {cause_of(error)}")
        if cuts or (outer := outermost(module, layers)) == layers:
            raise refusal from error
        # Code of a layer around other layers: that one may be opaque.
        try:
            graph = export_glue(source, outer)
        except Exception:
            raise refusal from error
        paths = outermost(module, paths)
    return _cut(source, graph, paths, is_exact=bool(cuts))


def _cut(
    source: SplitSource, graph: ExportedGraph, paths: Sequence[str], *, is_exact: bool
) -> Chain:
    """Return the chain, cut before modules; if `is_exact` even before the first."""
    name, module = source.spec.name, source.on_meta
    for path in paths if is_exact else ():
        if path not in graph.places:
            reason = f'it never runs its module "{path}"'
            raise CannotSplit(name, reason, "cut before modules that it runs")
    constants = {**source.unsaved(), **graph.constants}
    layers = {path: module.get_submodule(path) for path in layers_of(graph.steps)}
    chain = Chain(
        name,
        *named_once(module, constants),
        constants,
        tuple(graph.steps),
        (),  # bounds
        dict(graph.inputs),
        graph.outputs,
        graph.values,
        source.dropped,
        _pickled(layers),
        _pickled(graph.structure),
        source.floating,
        graph.guards,
        TokenRules(
            keywords := frozenset(key for key in graph.inputs if isinstance(key, str)),
            "attention_mask" in keywords,
            pad_token(source.module),
            equal_lengths=reads_padding(source.module),
        ),
    )
    places = {path: graph.places[path] for path in paths if path in graph.places}
    if is_exact:
        starts = [("inputs", 0), *_ordered(places)]
    else:
        starts = _starts(graph, _without_peaks(module, chain, places))
    names, bounds = zip(*starts, strict=True)
    chain = replace(chain, bounds=(*bounds, len(chain.steps)))
    blocks = tuple(_block(chain, layers, n, name) for n, name in enumerate(names))
    crossed = {name for place in chain.bounds for name in chain.live(place)}
    used = {name for block in blocks for name in block.tensors}
    return replace(
        chain,
        blocks=blocks,
        tensors={name: chain.tensors[name] for name in sorted(used)},
        constants={name: t for name, t in constants.items() if name in used},
        values={name: v for name, v in chain.values.items() if name in crossed},
    )


def _without_peaks(
    module: nn.Module, chain: Chain, places: Mapping[str, int]
) -> dict[str, int]:
    """Drop cuts inside a layer where more tensors cross than before and after it.

    That is how blocks with a residual inside a list inside a layer look.
    """
    ordered = _ordered(places)
    counts = [
        sum(name in chain.values for name in chain.live(place)) for _, place in ordered
    ]
    kept = {}
    for number, (path, place) in enumerate(ordered):
        lower = [count < counts[number] for count in counts]
        is_peak = any(lower[:number]) and any(lower[number + 1 :])
        if not (is_peak and items_around(module, path)):
            kept[path] = place
    return kept


def _starts(graph: ExportedGraph, places: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return one module at each place; the first of all starts with the model."""
    first: dict[int, str] = {}
    for path, place in _ordered(places):
        # The largest that starts there and holds no other.
        for outer in accumulate(path.split("."), "{}.{}".format):
            inside = [other for other in places if f"{other}.".startswith(f"{outer}.")]
            if inside == [path] and graph.places.get(outer) == place:
                first.setdefault(place, outer)
    names, later = list(first.values()) or ["whole"], list(first)[1:]
    return list(zip(names, [0, *later], strict=True))


def _ordered(places: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(places.items(), key=lambda item: item[1])


def _block(
    chain: Chain, layers: Mapping[str, nn.Module], number: int, name: str
) -> Block:
    start, stop = chain.bounds[number : number + 2]
    needed = weights_of(chain.steps[start:stop])
    for path in layers_of(chain.steps[start:stop]):
        needed += [tensor for tensor, _ in named_tensors(layers[path], path)]
    names = tuple(dict.fromkeys(map(chain.first_name, needed)))
    tensors = [chain.tensors[name] for name in names]
    parameters = sum(t.numel() for t in tensors if isinstance(t, nn.Parameter))
    is_last = number + 2 == len(chain.bounds)
    crossing = {} if is_last else chain.known(number + 1, _ROWS)
    row_bytes = nbytes_of(crossing) // _ROWS
    return Block(name, names, parameters, chain.tensor_bytes(names), row_bytes)


def _pickled(obj: object) -> bytes:
    try:
        return pickling.to_bytes(obj, pickling.DryRun())  # without memory to share
    except Exception:
        pickling.dry_run(obj)  # says what cannot be pickled
        raise
