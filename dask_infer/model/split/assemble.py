"""From the graph of a model to its chain: blocks, their tensors and bytes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from dask_infer.model.identity import pickling
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.shapes.padding import pad_token, reads_padding
from dask_infer.model.split.chain import TOKENS, Block, Chain, Tensor
from dask_infer.model.split.export.example_call import ExampleCall
from dask_infer.model.split.export.exported_graph import Graph
from dask_infer.model.split.export.size_guards import Guard
from dask_infer.model.split.export.source_model import SplitSource
from dask_infer.model.split.program import Program, WeightRef

#: Rows at which bytes a row are counted: masks of positions do not depend on rows.
_ROWS = 64


def assemble(
    source: SplitSource,
    call: ExampleCall,
    graph: Graph,
    places: Mapping[str, int],
    structure: Any,
    guards: tuple[Guard, ...] = (),
    *,
    exact_cuts: bool,
) -> Chain:
    """Return the chain.

    Parameters
    ----------
    places
        Place of the first step of each block, by the module that it starts with.
    structure
        Of the output.
    exact_cuts
        Keep a first block of what comes before the first module.
    """
    program, module = graph.program, source.on_meta
    names, bounds = _blocks(places, len(program.steps), exact_cuts)
    constants = {**source.unsaved(), **graph.constants}
    aliases, tensors = named_once(module, constants)
    blocks: list[Block] = []
    crossed = set(program.live(0))
    for name, (start, stop) in zip(names, pairwise(bounds), strict=True):
        needed = tuple(
            dict.fromkeys(
                aliases.get(tensor, tensor)
                for tensor in _needed(program, module, start, stop)
            )
        )
        crossing = program.live(stop)
        crossed |= {*crossing}
        is_last = len(blocks) == len(names) - 1
        own = [tensors[tensor] for tensor in needed]
        blocks.append(
            Block(
                name,
                needed,
                sum(tensor.numel for tensor in own if tensor.is_parameter),
                sum(tensor.nbytes for tensor in own),
                0 if is_last else _row_bytes(program, crossing),
            )
        )
    known = {name: v for name, v in program.values.items() if name in crossed}
    used = {tensor for block in blocks for tensor in block.tensors}
    paths = {step.target for step in program.steps if step.kind == "layer"}
    return Chain(
        source.spec.name,
        tuple(blocks),
        Program(program.inputs, program.steps, program.outputs, known),
        tuple(bounds),
        dict(graph.inputs),
        call.dropped,
        {name: tensors[name] for name in sorted(used)},
        aliases,
        {name: tensor for name, tensor in constants.items() if name in used},
        _pickled({path: module.get_submodule(path) for path in sorted(paths)}),
        _pickled(structure),
        call.floating,
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
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the first names of tensors by their others, and all tensors by theirs."""
    aliases, tensors = {}, {}
    first: dict[int, str] = {}
    for name, tensor in named_tensors(module):
        known = first.setdefault(id(tensor), name)
        if known == name:
            tensors[name] = Tensor.of(tensor)
        else:
            aliases[name] = known
    for name, tensor in constants.items():
        if name not in aliases:
            tensors.setdefault(name, Tensor.of(tensor))
    return aliases, tensors


def _needed(program: Program, module: nn.Module, start: int, stop: int) -> list[str]:
    """Return the names of the tensors that steps [start, stop) need."""
    found = []
    for step in program.steps[start:stop]:
        found += [read.name for read in step.reads if isinstance(read, WeightRef)]
        if step.kind == "layer":
            layer = module.get_submodule(step.target)
            found += [name for name, _ in named_tensors(layer, step.target)]
    return found


def _row_bytes(program: Program, names: tuple[str, ...]) -> int:
    known = [program.values[name] for name in names if name in program.values]
    return sum(value.nbytes(_ROWS, TOKENS) for value in known) // _ROWS


def _pickled(obj: object) -> bytes:
    try:
        return pickling.to_bytes(obj, pickling.DryRun())  # without memory to share
    except Exception:
        pickling.dry_run(obj)  # says what cannot be pickled
        raise
