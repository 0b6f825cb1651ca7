"""Splitting by masking: the model's whole forward in each stage, others' layers aside.

The last tier, for models whose code around the layers cannot be followed. A chain is
held against the undivided model on made-up numbers before it is believed, and a stage
refuses rows for which the model calls other layers than for those.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.assemble import Parts, assemble
from dask_infer.model.split.call import Call
from dask_infer.model.split.candidates import candidates, is_item, layers_around
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.followed import Unfollowed
from dask_infer.model.split.made_up import Batch, MadeUp
from dask_infer.model.split.masked import Doors, LayerCall, MaskedCall, Skeleton
from dask_infer.model.split.opened import Original
from dask_infer.model.split.outputs import Leaf, Node, count, take_apart
from dask_infer.model.split.program import Held, Program, Ref, Step
from dask_infer.model.split.refusals import CannotSplit
from dask_infer.model.split.sequential import part

Key = int | str


def by_masking(
    original: Original, call: Call, cuts: tuple[str, ...] | None, refusal: CannotSplit
) -> Chain:
    """Cut between calls of repeated layers.

    Parameters
    ----------
    refusal
        Why the code around the layers cannot be followed; raised where this does not
        do it either.

    Raises
    ------
    CannotSplit
        `refusal`.
    """
    try:
        return _split(original, call, cuts)
    except Exception as error:
        raise refusal from error


def _split(original: Original, call: Call, cuts: tuple[str, ...] | None) -> Chain:
    layers = _layers(original.module)
    made = MadeUp(original)
    batches = made.batches(call, signs=(1, -1))
    seen = _Seen.of(made.module, layers, call, batches)
    bounds = _bounds(seen.calls, cuts)
    inputs = {k: f"input_{k}" if isinstance(k, int) else k for k in call.examples}
    skeleton = Skeleton(call.name, original.hollow(), seen.calls, seen.late, call.extra)
    structures = [*(each.structure for each in seen.calls), seen.structure]
    writer = _Writer(original, seen, inputs)
    outputs = writer.write()
    program = Program(
        tuple(inputs.values()), tuple(writer.steps), outputs, call.values(inputs)
    )
    parts = Parts(
        program,
        {name: writer.places[place] for name, place in bounds.items()},
        inputs,
        seen.structure,
        original.unsaved(),
        modules=[],
        tier="masked",
        made={
            path_of(place): MaskedCall(skeleton, place, structure)
            for place, structure in enumerate(structures)
        },
    )
    chain = assemble(original, call, parts, exact_cuts=cuts is not None)
    made.check(chain, batches)
    return chain


def _layers(module: nn.Module) -> tuple[str, ...]:
    """Return the items of lists, by their first names; the outermost ones."""
    first = {id(layer): path for path, layer in module.named_modules()}
    found: dict[str, None] = {}
    for path in candidates(module):
        outer = next(iter(layers_around(module, path)), path)
        if is_item(module, outer):
            found[first[id(module.get_submodule(outer))]] = None
    if len(found) < 2:
        raise Unfollowed("it has no list of layers")
    return tuple(found)


def _bounds(
    calls: tuple[LayerCall, ...], cuts: tuple[str, ...] | None
) -> dict[str, int]:
    """Return the calls before which to cut."""
    first: dict[str, int] = {}
    for place, call in enumerate(calls):
        name = call.layer if call.layer not in first else f"{call.layer} again"
        first.setdefault(name if name not in first else f"{name} ({place})", place)
    unknown = [cut for cut in cuts or () if cut not in first]
    if unknown:
        raise Unfollowed(f'"{unknown[0]}" is no layer of a list that it runs')
    return {cut: first[cut] for cut in cuts} if cuts else first


@dataclass
class _Seen:
    """What the undivided model did with made-up rows."""

    calls: tuple[LayerCall, ...]
    structure: Leaf | Node
    #: Modules beside the layers that are only called after the last of them.
    late: frozenset[str]

    @classmethod
    def of(
        cls,
        module: nn.Module,
        layers: tuple[str, ...],
        call: Call,
        batches: list[Batch],
    ) -> _Seen:
        """Run all batches; the module is changed."""
        beside = _Beside(module)
        doors = Doors(module, layers)
        runs = [_calls(doors, call, batch, beside) for batch in batches]
        structures = [batch.expected[0] for batch in batches]
        if any(run != runs[0] for run in runs):
            raise Unfollowed("it calls its layers in another order for other rows")
        if any(structure != structures[0] for structure in structures):
            raise Unfollowed("what it returns has another structure for other rows")
        if len(runs[0]) < 2:
            raise Unfollowed("it runs no two layers of a list")
        return cls(tuple(runs[0]), structures[0], beside.late())


class _Beside:
    """When each module was called: before the last layer, or after it."""

    def __init__(self, module: nn.Module) -> None:
        self.early: set[str] = set()
        self.after: set[str] = set()
        #: Called since the last layer.
        self.since: set[str] = set()
        for path, child in module.named_modules():
            child.register_forward_pre_hook(partial(self._note, path))

    def layer(self) -> None:
        """Note that a layer is called, or has returned."""
        self.early |= self.since
        self.since.clear()

    def batch(self) -> None:
        """Note that a batch is through."""
        self.after |= self.since
        self.since.clear()

    def late(self) -> frozenset[str]:
        """Return those that no layer came after."""
        return frozenset(self.after - self.early)

    def _note(self, path: str, module: nn.Module, args: Any) -> None:
        self.since.add(path)


def _calls(doors: Doors, call: Call, batch: Batch, beside: _Beside) -> list[LayerCall]:
    """Return the calls of layers for a batch, in turn."""
    calls = []

    def passed(path: str, run: Any) -> Any:
        beside.layer()
        output = run()
        beside.layer()
        calls.append(LayerCall(path, take_apart(output, [])))
        return output

    with torch.no_grad(), doors.passing(passed):
        doors.module(*batch.args, **batch.kwargs, **call.extra)
    beside.batch()
    return calls


class _Writer:
    """Writes a step for each call of a layer, and one for what is after the last."""

    def __init__(self, original: Original, seen: _Seen, inputs: dict[Key, str]) -> None:
        self.seen, self.inputs = seen, inputs
        self.names = [name for name, _ in named_tensors(original.hollow())]
        self.layers = {call.layer for call in seen.calls}
        self.steps: list[Step] = []
        self.before: list[tuple[Ref, ...]] = []
        #: Place of the step of each call.
        self.places: list[int] = []

    def write(self) -> tuple[Ref, ...]:
        """Write all steps; returns the leaves of the output."""
        for call in self.seen.calls:
            self.before.append(self._step(call.structure, call.layer))
        return self._step(self.seen.structure, None)

    def _step(self, structure: Leaf | Node, layer: str | None) -> tuple[Ref, ...]:
        place = len(self.before)
        self.places.append(len(self.steps))
        args = tuple(Ref(n) for key, n in self.inputs.items() if isinstance(key, int))
        kwargs = {k: Ref(n) for k, n in self.inputs.items() if isinstance(k, str)}
        tensors = {name: Held(name) for name in self.names if self._needs(name, layer)}
        value = f"call_{place}"
        given = (args, kwargs, tensors, tuple(self.before))
        self.steps.append(Step(value, "module", path_of(place), given))
        parts = [f"{value}_leaf_{n}" for n in range(count(structure))]
        self.steps += [
            Step(name, "function", part, (Ref(value), n))
            for n, name in enumerate(parts)
        ]
        return tuple(Ref(name) for name in parts)

    def _needs(self, name: str, layer: str | None) -> bool:
        """Whether a step that runs this layer, or what is after all, reads a tensor."""
        inside = next((p for p in self.layers if name.startswith(f"{p}.")), None)
        if inside is not None:
            return inside == layer
        return layer is None or name.rpartition(".")[0] not in self.seen.late


def path_of(place: int) -> str:
    """Return where a stage keeps the masked call at this place."""
    return f"masked_call_{place}"
