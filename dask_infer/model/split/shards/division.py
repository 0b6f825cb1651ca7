"""Which tensors of a model are divided among shards, and along which axis.

Those of layers that multiply by one large weight, and such weights that the code around
layers reads. What is small stays whole: to put its outputs together would take a
message and save next to nothing. All else is whole on every shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

from torch import nn

from dask_infer.model.split.shards.axis_parts import AxisParts
from dask_infer.model.split.steps import Step, WeightRef

#: Share of all that could be divided below which the tensors of one shape stay whole.
SMALL = 0.01

#: For each tensor its axis.
Axes = Mapping[str, int]


class Cut(NamedTuple):
    """How one tensor is divided."""

    axis: int
    parts: AxisParts
    #: Results stay divided as long as operations have rules.
    stays: bool = False


@dataclass(frozen=True)
class Shard:
    """One of the workers that share a stage."""

    index: int
    count: int
    #: How tensors are divided other than evenly along their axes, by their first names.
    cuts: tuple[tuple[str, Cut], ...] = ()

    @cached_property
    def _cuts(self) -> dict[str, Cut]:
        return dict(self.cuts)

    def cut(self, name: str, shape: tuple[int, ...], axes: Axes) -> Cut | None:
        """Return how a tensor is divided; None where each shard has the whole."""
        axis = axes.get(name)
        if axis is None or shape[axis] < self.count:
            return None
        return self._cuts.get(name) or Cut(
            axis, AxisParts.even(shape[axis], self.count)
        )

    def numel(self, name: str, shape: tuple[int, ...], axes: Axes) -> int:
        """Return how many numbers of a tensor this shard holds."""
        cut = self.cut(name, shape, axes)
        if cut is None:
            return prod(shape)
        return prod(cut.parts.part_shape(shape, cut.axis, self.index))


def axes_of(
    layers: Mapping[str, nn.Module],
    steps: Iterable[Step],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str],
) -> dict[str, int]:
    """Return the axis of each tensor that is divided, by its first name.

    `layers` are modules by their paths, `steps` the code around them; `aliases`
    has the first names of tensors that have several.
    """
    axes: dict[str, int] = {}
    for weight, axis in _weights(layers, steps):
        name = aliases.get(weight, weight)
        if name in shapes:
            axes.setdefault(name, axis)
    total = sum(prod(shapes[name]) for name in axes)
    by_shape: Counter[tuple[int, ...]] = Counter()
    for name in axes:
        by_shape[shapes[name]] += prod(shapes[name])
    large = {shape for shape, numel in by_shape.items() if numel > SMALL * total}
    return {name: axis for name, axis in axes.items() if shapes[name] in large}


def _weights(
    layers: Mapping[str, nn.Module], steps: Iterable[Step]
) -> Iterator[tuple[str, int]]:
    """Yield the name of each weight and its axis."""
    for path, layer in layers.items():
        for place, module in layer.named_modules(prefix=path, remove_duplicate=False):
            prefix = f"{place}." if place else ""
            for name, axis in _own_weights(module).items():
                yield f"{prefix}{name}", axis
    for step in steps:
        if step.kind == "operator" and step.target[1] in _OPERATORS:
            weight, axis = _OPERATORS[step.target[1]]
            if _is_weight(step.args, weight) and not _has_groups(step.args):
                yield step.args[weight].name, axis


#: Operators of exported code: the place of the weight, and its axis.
_OPERATORS: dict[str, tuple[int, int]] = {
    "linear": (1, 0),
    "addmm": (2, 1),
    "embedding": (0, 0),
    **{f"conv{axes}d": (1, 0) for axes in (1, 2, 3)},
}


def _is_weight(args: tuple[Any, ...], place: int) -> bool:
    return len(args) > place and isinstance(args[place], WeightRef)


def _has_groups(args: tuple[Any, ...]) -> bool:
    return len(args) > 6 and args[6] != 1


def _own_weights(module: nn.Module) -> dict[str, int]:
    """Return the axes of a module's own weights."""
    # A class of its own may read its weight in other ways.
    kind = type(module)
    if kind is nn.Linear:
        return {"weight": 0}
    if kind is nn.Embedding and module.max_norm is None:
        return {"weight": 0}  # of a file only its own words are read
    if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        plain = module.groups == 1 and module.padding_mode == "zeros"
        return {"weight": 0} if plain else {}
    if kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers."):
        return {"weight": 1}
    # Matrices of experts, one behind the other: (experts, outputs, inputs) or turned.
    return {
        name: 1
        for name, tensor in module.named_parameters(recurse=False)
        if tensor.dim() == 3
        and len(tensor) > 1
        and not kind.__module__.startswith("torch.")
    }
