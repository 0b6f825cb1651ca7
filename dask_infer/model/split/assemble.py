"""The last step of every tier: blocks, their tensors and bytes, and the chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain as chained
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from dask_infer.model.identity import pickling
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.shapes.padding import pad_token, reads_padding
from dask_infer.model.split.call import Call
from dask_infer.model.split.chain import Block, Chain, Key, Tensor, Tier, cut_bytes
from dask_infer.model.split.guards import Guard
from dask_infer.model.split.opened import Original
from dask_infer.model.split.program import Held, Program, reads


@dataclass(frozen=True)
class Parts:
    """What a tier found."""

    program: Program
    #: Place of the first step of each block, by the module that it starts with.
    bounds: Mapping[str, int]
    inputs: Mapping[Key, str]
    structure: Any
    constants: Mapping[str, torch.Tensor]
    #: The model's modules that steps call.
    modules: list[str]
    tier: Tier
    #: Other modules that steps call, by path; they have no tensors of their own.
    made: Mapping[str, nn.Module] = field(default_factory=dict)
    #: Sizes of inputs for which the program is what the model's code does.
    guards: tuple[Guard, ...] = ()


def assemble(
    original: Original, call: Call, parts: Parts, *, exact_cuts: bool
) -> Chain:
    """Return the chain; `exact_cuts` keeps a first block of what comes before."""
    names, bounds = _blocks(parts, exact_cuts)
    catalogue = _Catalogue(original, parts)
    crossings = parts.program.crossings(tuple(bounds))
    blocks = []
    for place, (name, (start, stop)) in enumerate(
        zip(names, pairwise(bounds), strict=True)
    ):
        tensors = tuple(catalogue.needed(start, stop))
        nbytes = sum(catalogue.tensors[tensor].nbytes for tensor in tensors)
        last = stop == bounds[-1] and place == len(names) - 1
        crossing = 0 if last else cut_bytes(parts.program, crossings[place + 1])
        blocks.append(Block(name, tensors, nbytes, crossing))
    needed = {tensor for block in blocks for tensor in block.tensors}
    crossed = set(chained.from_iterable(crossings))
    return Chain(
        original.spec.name,
        parts.tier,
        tuple(blocks),
        _only_values(parts.program, crossed),
        tuple(bounds),
        dict(parts.inputs),
        call.dropped,
        {name: catalogue.tensors[name] for name in sorted(needed)},
        catalogue.aliases,
        {name: t for name, t in parts.constants.items() if name in needed},
        _pickled(
            {path: catalogue.hollow.get_submodule(path) for path in parts.modules}
            | dict(parts.made)
        ),
        _pickled(parts.structure),
        call.floating,
        parts.guards,
        pad_token(original.module),
        reads_padding(original.module),
    )


def _blocks(parts: Parts, exact_cuts: bool) -> tuple[list[str], list[int]]:
    """Return the blocks' names, and the places between which they are."""
    ordered = sorted(parts.bounds.items(), key=lambda item: item[1])
    end = len(parts.program.steps)
    if exact_cuts:
        return ["inputs", *(name for name, _ in ordered)], [
            0,
            *(place for _, place in ordered),
            end,
        ]
    first: dict[int, str] = {}
    for name, place in ordered:
        first.setdefault(place, name)
    names, places = list(first.values()), list(first)
    if not names:
        return ["whole"], [0, end]
    return names, [0, *places[1:], end]


class _Catalogue:
    """The model's tensors, by their first names."""

    def __init__(self, original: Original, parts: Parts) -> None:
        self.program, self.made = parts.program, parts.made
        self.hollow = original.hollow()
        self.aliases: dict[str, str] = {}
        self.tensors: dict[str, Tensor] = {}
        first: dict[int, str] = {}
        for name, tensor in named_tensors(self.hollow):
            known = first.setdefault(id(tensor), name)
            if known != name:
                self.aliases[name] = known
                continue
            self.tensors[name] = _tensor(tensor)
        for name, tensor in parts.constants.items():
            self.tensors.setdefault(name, _tensor(tensor))

    def needed(self, start: int, stop: int) -> dict[str, None]:
        """Return the first names of the tensors that steps [start, stop) need."""
        found: dict[str, None] = {}
        for step in self.program.steps[start:stop]:
            for read in reads(step):
                if isinstance(read, Held):
                    found[self.aliases.get(read.name, read.name)] = None
            if step.kind == "module" and step.target not in self.made:
                module = self.hollow.get_submodule(step.target)
                for name, _ in named_tensors(module, step.target):
                    found[self.aliases.get(name, name)] = None
        return found


def _tensor(tensor: torch.Tensor) -> Tensor:
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return Tensor(tensor.dtype, tuple(tensor.shape), is_parameter)


def _only_values(program: Program, names: set[str]) -> Program:
    """Keep what is known of values that may cross a cut or leave the model."""
    kept = {name: value for name, value in program.values.items() if name in names}
    return Program(program.inputs, program.steps, program.outputs, kept)


def _pickled(obj: object) -> bytes:
    return pickling.to_bytes(obj, pickling.survey(obj))
