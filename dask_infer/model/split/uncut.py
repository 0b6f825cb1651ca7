"""A module that is in no stages: shards divide its tensors, and it runs as it is.

So a model can be divided of which the layers are not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dask_infer.model.formats.format import load_errors
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import parse_dtype
from dask_infer.model.runtime.loaded_model import LoadedModel, ModuleModel
from dask_infer.model.shapes.sandbox import sandbox
from dask_infer.model.split.assemble import named_once
from dask_infer.model.split.export.split_source import SplitSource
from dask_infer.model.split.shards import Shard
from dask_infer.model.split.shards.division import Axes, axes_of
from dask_infer.model.split.stage_loader import fill
from dask_infer.model.split_refusals import AS_MODULE, CannotSplit
from dask_infer.spec import ModelSpec


@dataclass(frozen=True, repr=False)
class Uncut:
    """A module without its weights, and what is known of them."""

    #: What people call the model.
    name: str
    #: In eval mode, its tensors on meta.
    module: nn.Module
    #: As of `TensorTable`.
    tensors: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str]
    constants: Mapping[str, torch.Tensor]
    axes: Axes

    def __repr__(self) -> str:
        return f"<Uncut {self.name}, {len(self.axes)} divided tensors>"

    def shard_bytes(self, shard: Shard | None) -> int:
        """Projected bytes of a shard; of the whole module where it is None."""
        return sum(
            tensor.nbytes
            if shard is None
            else tensor.dtype.itemsize * shard.numel(name, tensor.shape, self.axes)
            for name, tensor in self.tensors.items()
        )


def open_uncut(spec: ModelSpec, live: object | None, dtype: str | None) -> Uncut:
    """Return the module of a model, without its weights.

    Parameters
    ----------
    live
        The caller's module, or what builds it; None to read the spec's own.
    dtype
        Floating dtype that it runs in; None as it is.

    Raises
    ------
    CannotSplit
        If it is no torch module.
    """
    wanted = parse_dtype(dtype)
    with sandbox():
        model = format_of(spec).open_to_split(spec, live)
        if not isinstance(model, nn.Module):
            raise CannotSplit(spec.name, "an exported program is no module", AS_MODULE)
        source = SplitSource.of(spec, model, wanted)
        module, constants = source.on_meta, source.unsaved()
        aliases, tensors = named_once(module, constants)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        axes = axes_of({"": module}, None, shapes, aliases)
    return Uncut(spec.name, module, tensors, aliases, constants, axes)


def load_uncut(
    spec: ModelSpec, shard: Shard, *, device: str, dtype: str | None
) -> LoadedModel:
    """Load what a shard holds of a module that is in no stages.

    Raises
    ------
    ModelLoadError
        If tensors cannot be found or read; names the model and the cause.
    """
    place = torch.device(device)
    with load_errors(spec):
        uncut = open_uncut(spec, None, dtype)
        fill(spec, uncut, uncut.module, place, shard)
    return ModuleModel(spec, uncut.module, place)
