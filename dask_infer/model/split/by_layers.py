"""Splitting by layers: they run as they are, only the code around them is followed.

The tier for models that torch cannot export because of code inside layers. A program
is held against the undivided model on made-up numbers before it is believed.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dask_infer.model.shapes.fake_model import private_copy
from dask_infer.model.split.assemble import Parts, assemble
from dask_infer.model.split.call import Call
from dask_infer.model.split.candidates import candidates, layers_around
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.followed import Followed, Unfollowed, follow
from dask_infer.model.split.made_up import MadeUp, Seen
from dask_infer.model.split.opened import Original
from dask_infer.model.split.outputs import Leaf, Node, take_apart
from dask_infer.model.split.program import Program, Ref, Step
from dask_infer.model.split.refusals import CannotSplit, cause_of
from dask_infer.model.split.sequential import part

Key = int | str


def by_layers(
    original: Original, call: Call, cuts: tuple[str, ...] | None, refusal: CannotSplit
) -> Chain:
    """Follow what is between the layers, and cut there.

    Parameters
    ----------
    refusal
        Why the model cannot be exported.

    Raises
    ------
    CannotSplit
        With the reason of `refusal`, and what stands in the way here.
    """
    first: Exception | None = None
    for pieces in _pieces(original.module, cuts):
        try:
            return _split(original, call, pieces, chosen=cuts is not None)
        except Exception as error:
            first = first or error
    assert first is not None
    raise CannotSplit(original.spec.name, _reason(refusal, first)) from first


def _reason(refusal: CannotSplit, error: Exception) -> str:
    why = str(error) if isinstance(error, Unfollowed) else cause_of(error)
    _, _, line = why.rpartition(" (at ")
    if line in refusal.reason:
        return refusal.reason
    return f"{refusal.reason}; nor can it be cut between its layers: {why}"


def _pieces(module: nn.Module, cuts: tuple[str, ...] | None) -> Iterator[list[str]]:
    """Yield the layers to leave whole, the outermost ones where finer ones fail."""
    pieces = list(cuts) if cuts else candidates(module)
    yield pieces
    if cuts is None:
        outer = [next(iter(layers_around(module, path)), path) for path in pieces]
        if outer != pieces:
            yield list(dict.fromkeys(outer))


def _split(original: Original, call: Call, pieces: list[str], *, chosen: bool) -> Chain:
    # On meta, so that code which looks at a number of its weights fails.
    copy = private_copy(original.hollow())
    followed = follow(copy, _whole(copy, pieces), list(call.examples), call.extra)
    program = Program(
        tuple(followed.inputs.values()),
        followed.steps,
        followed.outputs,
        call.values(followed.inputs),
    )
    _check_pickles(program)
    made = MadeUp(original)
    batches = made.batches(call)
    seen = made.watch(program, followed.inputs, followed.constants, batches)
    bounds = _bounds(original.module, program, followed, pieces, seen, chosen)
    outputs = _Outputs(seen)
    structure = outputs.of(followed.structure, followed.outputs)
    program = Program(
        program.inputs,
        (*program.steps, *outputs.steps),
        tuple(outputs.leaves),
        program.values,
    )
    used = [str(step.target) for step in program.steps if step.kind == "module"]
    parts = Parts(
        program,
        bounds,
        followed.inputs,
        structure,
        {**original.unsaved(), **followed.constants},
        modules=list(dict.fromkeys(used)),
        tier="layers",
    )
    chain = assemble(original, call, parts, exact_cuts=chosen)
    made.check(chain, batches)
    return chain


def _whole(module: nn.Module, pieces: list[str]) -> frozenset[str]:
    """Return the modules that no piece is inside of, by their first paths."""
    inner = [module.get_submodule(path) for path in pieces]
    return frozenset(
        path
        for path, outer in module.named_modules()
        if path and not any(p in inner for p in outer.modules() if p is not outer)
    )


def _bounds(
    module: nn.Module,
    program: Program,
    followed: Followed,
    pieces: list[str],
    seen: Seen,
    chosen: bool,
) -> dict[str, int]:
    """Return the places before which to cut."""
    first = {id(layer): path for path, layer in module.named_modules()}
    bounds = {}
    for piece in pieces:
        place = followed.places.get(first[id(module.get_submodule(piece))])
        if place is not None and (place == 0 or seen.allows(program, place)):
            bounds[piece] = place
        elif chosen and place is None:
            raise Unfollowed(f'it never runs its module "{piece}"')
        elif chosen:
            raise Unfollowed(
                f'before "{piece}" cross values that are no tensors, or tensors that '
                "are changed in place later"
            )
    if len(bounds) < 2 and not chosen:
        raise Unfollowed("no two of its layers have only tensors between them")
    return bounds


def _check_pickles(program: Program) -> None:
    for step in program.steps:
        try:
            pickle.dumps(step)
        except Exception as error:
            raise Unfollowed(f"its step {step.name} cannot travel: {error}") from error


@dataclass
class _Outputs:
    """Takes apart what the model returns as some layer returned it."""

    seen: Seen
    leaves: list[Any] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def of(self, structure: Leaf | Node, outputs: tuple[Any, ...]) -> Leaf | Node:
        """Return the structure of all leaves."""
        if isinstance(structure, Node):
            items = tuple(self.of(item, outputs) for item in structure.items)
            return Node(structure.kind, structure.keys, items)
        value = outputs[structure.place]
        if not isinstance(value, Ref) or value.name not in self.seen.nested:
            self.leaves.append(value)
            return Leaf(len(self.leaves) - 1)
        inner: list[Any] = []
        nested = take_apart(self.seen.values[value.name], inner)
        names = [f"{value.name}_leaf_{n}" for n in range(len(inner))]
        self.steps += [
            Step(name, "function", part, (value, n)) for n, name in enumerate(names)
        ]
        return self.of(nested, tuple(Ref(name) for name in names))
