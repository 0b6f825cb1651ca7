"""The model that is split: parameters without memory, buffers with their values.

Buffers that no checkpoint holds (frequencies, positions) are computed as the model is
built, so a chain brings them along.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dask_infer.model.runtime.footprint import floating_dtype
from dask_infer.model.shapes.fake_model import structure_copy
from dask_infer.model.split_refusals import AS_MODULE, CannotSplit
from dask_infer.spec import ModelSpec


@dataclass(frozen=True)
class SplitSource:
    """The model as the client has it; never changed."""

    spec: ModelSpec
    module: nn.Module
    #: Floating dtype to run in; None as it is.
    dtype: torch.dtype | None

    @property
    def floating(self) -> torch.dtype:
        """The dtype of floating inputs."""
        own = floating_dtype(self.module)
        return self.dtype or own or torch.get_default_dtype()

    def converted(self, tensor: torch.Tensor) -> torch.dtype:
        """Return the dtype in which a tensor of the model will be used."""
        casts = self.dtype is not None and tensor.is_floating_point()
        return self.dtype if casts and self.dtype is not None else tensor.dtype

    def traceable(self, mode: FakeTensorMode) -> nn.Module:
        """Return a copy with fake parameters and real buffers, in eval mode."""
        memo: dict[int, Any] = {}
        for parameter in self.module.parameters():
            with mode:
                fake = torch.empty_strided(
                    parameter.shape,
                    parameter.stride(),
                    dtype=self.converted(parameter),
                )
            memo[id(parameter)] = nn.Parameter(fake, requires_grad=False)
        for tensor in self.module.buffers():
            memo[id(tensor)] = tensor.detach().to("cpu", self.converted(tensor))
        return structure_copy(self.module, memo, lambda t: t.detach().clone())

    @cached_property
    def on_meta(self) -> nn.Module:
        """A copy with parameters and buffers on meta, in eval mode."""
        memo: dict[int, Any] = {}
        for parameter in self.module.parameters():
            empty = self._empty(parameter)
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
        for tensor in self.module.buffers():
            memo[id(tensor)] = self._empty(tensor)
        return structure_copy(self.module, memo, torch.Tensor.detach)

    def unsaved(self) -> dict[str, torch.Tensor]:
        """Return the buffers that no checkpoint holds, by all of their names."""
        found = {}
        for path, layer in self.module.named_modules(remove_duplicate=False):
            for name in layer._non_persistent_buffers_set:
                buffer = layer._buffers.get(name)
                if buffer is not None:
                    kept = buffer.detach().to("cpu", self.converted(buffer))
                    found[f"{path}.{name}" if path else name] = kept
        return found

    def _empty(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=self.converted(tensor), device="meta"
        )


def source_of(
    spec: ModelSpec, module: nn.Module, dtype: torch.dtype | None
) -> SplitSource:
    """Return a module as what can be split.

    Raises
    ------
    CannotSplit
        If it has no layers, or they have no sizes.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise CannotSplit(spec.name, "a TorchScript program is one piece", AS_MODULE)
    if any(nn.parameter.is_lazy(t) for t in (*module.parameters(), *module.buffers())):
        reason = "lazy layers have no sizes yet"
        raise CannotSplit(spec.name, reason, "call it once on an example row")
    return SplitSource(spec, module, dtype)
