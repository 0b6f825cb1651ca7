"""From the graph of a model to its chain: blocks, their tensors and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn

from dask_infer.model.identity import pickling
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.shapes.padding import pad_token, reads_padding
from dask_infer.model.split.chain import TOKENS, Block, Chain
from dask_infer.model.split.export.exported_graph import Graph
from dask_infer.model.split.export.size_guards import Guard
from dask_infer.model.split.export.split_source import SplitSource
from dask_infer.model.split.program import Program, nbytes_of

#: Rows at which bytes a row are counted: masks of positions do not depend on rows.
_ROWS = 64


def assemble(
    source: SplitSource,
    graph: Graph,
    places: Mapping[str, int],
    guards: tuple[Guard, ...] = (),
    *,
    exact_cuts: bool,
) -> Chain:
    """Return the chain.

    Parameters
    ----------
    places
        Place of the first step of each block, by the module that it starts with.
    exact_cuts
        Keep a first block of what comes before the first module.
    """
    program, module = graph.program, source.on_meta
    names, bounds = _blocks(places, len(program.steps), exact_cuts)
    constants = {**source.unsaved(), **graph.constants}
    aliases, tensors = named_once(module, constants)
    layers = {path: module.get_submodule(path) for path in program.layers()}
    blocks: list[Block] = []
    for name, (start, stop) in zip(names, pairwise(bounds), strict=True):
        needed = program.weights(start, stop)
        for path in program.layers(start, stop):
            needed += [tensor for tensor, _ in named_tensors(layers[path], path)]
        first = dict.fromkeys(aliases.get(tensor, tensor) for tensor in needed)
        own = {tensor: tensors[tensor] for tensor in first}
        parameters = [t.numel() for t in own.values() if isinstance(t, nn.Parameter)]
        nbytes = sum(tensor.nbytes for tensor in own.values())
        is_last = len(blocks) == len(names) - 1
        crossing = {} if is_last else program.carry(stop, _ROWS, TOKENS)
        row_bytes = nbytes_of(crossing) // _ROWS
        blocks.append(Block(name, tuple(own), sum(parameters), nbytes, row_bytes))
    crossed = {name for place in (0, *bounds) for name in program.live(place)}
    known = {name: v for name, v in program.values.items() if name in crossed}
    used = sorted({tensor for block in blocks for tensor in block.tensors})
    return Chain(
        source.spec.name,
        tuple(blocks),
        Program(program.inputs, program.steps, program.outputs, known),
        tuple(bounds),
        dict(graph.inputs),
        source.dropped,
        {name: tensors[name] for name in used},
        aliases,
        {name: tensor for name, tensor in constants.items() if name in used},
        _pickled(layers),
        _pickled(graph.structure),
        source.floating,
        guards,
        pad_token(source.module),
        reads_padding(source.module),
    )


def _blocks(
    places: Mapping[str, int], end: int, exact_cuts: bool
) -> tuple[list[str], list[int]]:
    """Return the blocks' names, and the places between which they are."""
    ordered = sorted(places.items(), key=lambda item: item[1])
    if exact_cuts:
        ordered.insert(0, ("inputs", 0))
        return [name for name, _ in ordered], [*(n for _, n in ordered), end]
    first: dict[int, str] = {}
    for name, place in ordered or [("whole", 0)]:
        first.setdefault(place, name)
    return list(first.values()), [0, *list(first)[1:], end]


def named_once(
    module: nn.Module, constants: Mapping[str, torch.Tensor]
) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return first names of tensors by their others, and all, on meta, by theirs."""
    aliases, tensors = {}, {}
    first: dict[int, str] = {}
    for name, tensor in named_tensors(module):
        known = first.setdefault(id(tensor), name)
        if known == name:
            tensors[name] = tensor
        else:
            aliases[name] = known
    for name, tensor in constants.items():
        if name not in aliases:
            tensors.setdefault(name, torch.empty_like(tensor, device="meta"))
    return aliases, tensors


def _pickled(obj: object) -> bytes:
    try:
        return pickling.to_bytes(obj, pickling.DryRun())  # without memory to share
    except Exception:
        pickling.dry_run(obj)  # says what cannot be pickled
        raise
