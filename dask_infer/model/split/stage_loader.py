"""One stage in this process: a few blocks of a model, with their own tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dask_infer.model.formats.format import load_errors
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import parse_dtype, tensor_bytes
from dask_infer.model.runtime.kept_memory import KeptMemory
from dask_infer.model.runtime.loaded_model import LoadedModel, ModuleModel
from dask_infer.model.shapes.sandbox import sandbox
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.export.split_source import SplitSource
from dask_infer.model.split.shards import Shard
from dask_infer.model.split.tensor_table import TensorTable, named_once
from dask_infer.model.split_refusals import AS_MODULE, CannotSplit
from dask_infer.plan.units import in_bytes
from dask_infer.spec.model_spec import ModelSpec
from dask_infer.spec.token_rules import TokenRules


class LoadedStage(LoadedModel):
    """Blocks [start, stop) of a chain: values by name in, values by name out."""

    def __init__(
        self,
        spec: ModelSpec,
        chain: Chain,
        start: int,
        stop: int,
        module: nn.Module,
        device: torch.device,
    ) -> None:
        super().__init__(spec, "tensor", module, tensor_bytes(module))
        self.device, self.floating = device, chain.floating
        self._name = f"{chain.name} [{start}:{stop}]"
        self._rules = chain.tokens
        self._kept = KeptMemory()

    def __repr__(self) -> str:
        size = in_bytes(self.nbytes)
        return f"<LoadedStage {self._name} {size} {self.device}>"

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None = None
    ) -> Any:
        """Return the carry after these blocks; the one given is left as it is."""
        module = self.target
        if module is None:
            raise RuntimeError(f"{self!r} was closed")
        with torch.inference_mode():
            return self._kept.run(module, lambda: module(*args))

    def close(self) -> None:
        """Free the tensors at once: a graph module would keep them, in a cycle."""
        if self.target is not None:
            for part in self.target.modules():
                part._parameters.clear()
                part._buffers.clear()
        super().close()

    def token_rules(self, method: str | None) -> TokenRules:
        """Return how the whole model takes tokens."""
        return self._rules


def load_stage(
    spec: ModelSpec,
    chain: Chain,
    start: int,
    stop: int,
    *,
    device: str = "cpu",
    shard: Shard | None = None,
) -> LoadedStage:
    """Load blocks [start, stop) of a model, reading their own tensors and no others.

    Parameters
    ----------
    spec
        The model that the chain was split from: where its weights are.
    device
        Where the stage is to live: ``"cpu"``, ``"cuda:1"``, ``"mps"``.
    shard
        Which of the workers that share the stage this is; only its parts of tensors
        are read. None for the whole stage.

    Raises
    ------
    ModelLoadError
        If tensors cannot be found or read; names the model and the cause.
    """
    place = torch.device(device)
    with load_errors(spec):
        module = chain.stage(start, stop, place)
        chain.fill(spec, module, place, shard)
    return LoadedStage(spec, chain, start, stop, module, place)


# Models of which the layers are not known


@dataclass(frozen=True, repr=False)
class Uncut(TensorTable):
    """A module in no stages: shards divide its tensors, and it runs as it is."""

    #: In eval mode, its tensors on meta.
    module: nn.Module

    def __repr__(self) -> str:
        return f"<Uncut {self.name}, {len(self.axes)} divided tensors>"

    def layers(self) -> Mapping[str, nn.Module]:
        """Return the module as the only layer."""
        return {"": self.module}

    def shard_bytes(self, shard: Shard | None) -> int:
        """Projected bytes of a shard; of the whole module where it is None."""
        return self.tensor_bytes(self.tensors, shard)


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
    return Uncut(spec.name, *named_once(module, constants), constants, (), module)


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
        uncut.fill(spec, uncut.module, place, shard)
    return ModuleModel(spec, uncut.module, place)
