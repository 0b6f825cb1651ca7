"""An ``nn.Sequential`` split along its own modules: nothing is traced, all is exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dask_infer.model.split.assemble import Parts, assemble
from dask_infer.model.split.call import Call
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.opened import Original
from dask_infer.model.split.outputs import Leaf, Node, take_apart
from dask_infer.model.split.program import Program, Ref, Size, Step, Value, fit

#: Rows and tokens at which sizes are measured, and twice them.
_ROWS, _TOKENS = 4, 8


def by_sequence(
    original: Original, call: Call, cuts: tuple[str, ...] | None
) -> Chain | None:
    """Return the chain of a sequence; None where the model is none."""
    if not _is_sequence(original.module) or list(call.examples) != [0] or call.extra:
        return None
    paths = list(_parts(original.module, ""))
    bounds = _bounds(original.module, paths, cuts)
    if bounds is None:
        return None
    seen = _Seen(original, call, paths)
    steps = [
        Step(_value(n + 1), "module", path, (Ref(_value(n)),))
        for n, path in enumerate(paths)
    ]
    structure, outputs = seen.structure, [Ref(_value(len(paths)))]
    if isinstance(structure, Node):
        count = seen.leaves
        outputs = [Ref(f"output_{n}") for n in range(count)]
        last = Ref(_value(len(paths)))
        steps += [
            Step(ref.name, "function", part, (last, n)) for n, ref in enumerate(outputs)
        ]
    program = Program((_value(0),), tuple(steps), tuple(outputs), seen.values)
    bounds = {p: n for p, n in bounds.items() if n == 0 or seen.is_tensor(n)}
    modules = list(dict.fromkeys(paths))
    parts = Parts(program, bounds, {0: _value(0)}, structure, {}, modules, "sequential")
    return assemble(original, call, parts, exact_cuts=cuts is not None)


def part(output: Any, place: int) -> Any:
    """Return one leaf of the last module's output."""
    leaves: list[Any] = []
    take_apart(output, leaves)
    return leaves[place]


def _value(place: int) -> str:
    return f"after_{place}"


def _is_sequence(module: nn.Module) -> bool:
    """Whether a call of it is that of its children, one after the other."""
    plain = type(module).forward is nn.Sequential.forward and len(module._modules) > 0
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return plain and not any(hooks) and "forward" not in vars(module)


def _parts(module: nn.Module, path: str) -> Iterator[str]:
    for name, child in module._modules.items():
        if child is None:
            continue
        below = f"{path}.{name}" if path else name
        if _is_sequence(child):
            yield from _parts(child, below)
        else:
            yield below


def _bounds(
    module: nn.Module, paths: list[str], cuts: tuple[str, ...] | None
) -> dict[str, int] | None:
    """Return where each block starts; None where a cut goes through a part."""
    if cuts is None:
        heavy = [(n, p) for n, p in enumerate(paths) if _has_tensors(module, p)]
        return {path: place for place, path in heavy}
    starts = {}
    for cut in cuts:
        inside = (n for n, p in enumerate(paths) if p == cut or p.startswith(f"{cut}."))
        place = next(inside, None)
        if place is None:
            return None
        starts[cut] = place
    return starts


def _has_tensors(module: nn.Module, path: str) -> bool:
    return next(module.get_submodule(path).parameters(), None) is not None


class _Seen:
    """What the values between the parts are, as far as fake tensors tell."""

    def __init__(self, original: Original, call: Call, paths: list[str]) -> None:
        self.values: dict[str, Value | Size] = {}
        self.structure: Leaf | Node = Leaf(0)
        self.leaves = 1
        self._others: set[int] = set()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._module = original.traceable(self._mode)
        self._call = call
        try:
            runs = self._runs(paths)
        except Exception:  # depends on values: sizes are known only once it runs
            runs = self._runs([])
        else:
            leaves: list[Any] = []
            self.structure = take_apart(runs[0][-1], leaves)
            self.leaves = len(leaves)
        for place, four in enumerate(zip(*runs, strict=True)):
            self._note(place, four)

    def is_tensor(self, place: int) -> bool:
        """Whether a tensor alone crosses a cut at this place."""
        return place not in self._others

    def _runs(self, paths: list[str]) -> list[list[Any]]:
        """Return the values of a batch, of twice its rows, its tokens, and both."""
        few, many = self._run(paths, 1, 1), self._run(paths, 2, 1)
        if not self._call.has_tokens(0):
            return [few, many, few, many]
        return [few, many, self._run(paths, 1, 2), self._run(paths, 2, 2)]

    def _run(self, paths: list[str], rows: int, tokens: int) -> list[Any]:
        """Return the input and what each part returns, on fake tensors."""
        (given,), _ = self._call.tensors(rows * _ROWS, tokens * _TOKENS)
        with torch.no_grad(), self._mode:
            values: list[Any] = [self._mode.from_tensor(given)]
            for path in paths:
                values.append(self._module.get_submodule(path)(values[-1]))
        return values

    def _note(self, place: int, four: tuple[Any, ...]) -> None:
        if not all(isinstance(value, torch.Tensor) for value in four):
            self._others.add(place)
            return
        shapes = [value.shape for value in four]
        if len({len(shape) for shape in shapes}) == 1:
            sizes = tuple(
                fit(*four_sizes, rows=_ROWS, tokens=_TOKENS)
                for four_sizes in zip(*shapes, strict=True)
            )
            self.values[_value(place)] = Value(four[0].dtype, sizes)
