"""The tensors of a model by name, without their numbers: filled in stage by stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.format import some
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import with_attributes
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.shards import DividedTensor, Shard
from dask_infer.model.split.shards.division import Axes, axes_of
from dask_infer.model.split.steps import Step
from dask_infer.spec import ModelSpec


@dataclass(frozen=True, repr=False)
class TensorTable:
    """What is known of the tensors of a model without loading it."""

    #: What people call the model.
    name: str
    #: Every tensor by its first name, on meta.
    tensors: Mapping[str, torch.Tensor]
    #: First name of tensors that have several.
    aliases: Mapping[str, str]
    #: Values of tensors that are in no checkpoint.
    constants: Mapping[str, torch.Tensor]
    #: Calls of its layers, and of what is between them; empty where it is not cut.
    steps: Sequence[Step]

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the modules that hold the tensors, by path, on meta."""
        raise NotImplementedError

    @cached_property
    def axes(self) -> Axes:
        """The axis of each tensor that shards divide."""
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        return axes_of(self.layers(), self.steps, shapes, self.aliases)

    def first_name(self, name: str) -> str:
        """Return the first name of a tensor that may have several."""
        return self.aliases.get(name, name)

    def tensor_bytes(self, names: Iterable[str], shard: Shard | None = None) -> int:
        """Projected bytes of tensors, or of what a shard holds of them."""
        found = {name: self.tensors[name] for name in names}
        if shard is None:
            return sum(tensor.nbytes for tensor in found.values())
        return sum(
            tensor.dtype.itemsize * shard.numel(name, tensor.shape, self.axes)
            for name, tensor in found.items()
        )

    def names_in(self, module: nn.Module) -> dict[str, list[str]]:
        """Return the names of each tensor of a stage, by its first in the model."""
        names = defaultdict(list)
        for name, _ in named_tensors(module):
            names[self.first_name(name)].append(name)
        return names

    def fill(
        self,
        spec: ModelSpec,
        module: nn.Module,
        device: torch.device,
        shard: Shard | None,
    ) -> None:
        """Read tensors into a stage, one object for all names of each.

        Raises
        ------
        ModelLoadError
            If some are missing, or have other shapes.
        """
        places, tied = self.names_in(module), defaultdict(list)
        for other, first in self.aliases.items():
            tied[first].append(other)
        asked = {n: tuple(tied[n]) for n in places if n not in self.constants}
        parts = {}
        if shard is not None:
            for name in asked:
                cut = shard.cut(name, self.tensors[name].shape, self.axes)
                if cut is not None:
                    parts[name] = (cut.axis, cut.parts.ranges(shard.index))
        read = format_of(spec).read_tensors
        found = {**read(spec, asked, parts), **self.constants}
        if missing := places.keys() - found.keys():
            where = spec.weights or spec.path or spec.name
            raise ModelLoadError(
                f"{where} lacks weights of {spec.name}: {some(missing)}"
            )
        for name, names in places.items():
            self.put(module, names, found[name], device, shard)

    def put(
        self,
        module: nn.Module,
        names: list[str],
        tensor: torch.Tensor,
        device: torch.device,
        shard: Shard | None = None,
    ) -> None:
        """Put a tensor, or what a shard holds of it, into a stage under its names."""
        first = self.first_name(names[0])
        expected, cut = self.tensors[first], None
        shape = tuple(expected.shape)
        if shard is not None:
            cut = shard.cut(first, shape, self.axes)
        if shard is not None and cut is not None:
            if tuple(tensor.shape) == shape:
                tensor = cut.parts.take(tensor, cut.axis, shard.index)
            tensor = tensor.contiguous()
            shape = cut.parts.part_shape(shape, cut.axis, shard.index)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"{self.name}: {names[0]} has shape {tuple(tensor.shape)}, its "
                f"architecture wants {shape}"
            )
        is_parameter = isinstance(expected, nn.Parameter)
        ready: torch.Tensor = tensor.detach().to(device, expected.dtype)
        if cut is not None:
            ready = DividedTensor(ready, cut.axis, cut.parts, is_parameter, cut.stays)
        elif is_parameter:
            ready = nn.Parameter(ready, requires_grad=False)
        with_attributes(ready, expected)
        for name in names:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, ready)


def named_once(
    module: nn.Module, constants: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return all tensors, on meta, by their first names, and these by the others."""
    tensors, aliases = dict[str, torch.Tensor](), dict[str, str]()
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
    return tensors, aliases
