"""What is split: a model of the client, weightless, and a call of it.

Buffers that no checkpoint holds (frequencies, positions) are computed as the model is
built, so a chain brings them along.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dask_infer.model.runtime.footprint import floating_dtype
from dask_infer.model.shapes.call_arguments import taken, without_cache
from dask_infer.model.shapes.fake_model import structure_copy
from dask_infer.model.shapes.trace_errors import Example, label
from dask_infer.model.split.export.learn_layer import ROWS, TOKENS
from dask_infer.model.split_refusals import AS_MODULE, CannotSplit
from dask_infer.spec import ArgumentKey, ModelSpec


@dataclass(frozen=True)
class SplitSource:
    """The model as the client has it, never changed, and one row of its arguments."""

    spec: ModelSpec
    module: nn.Module
    #: Floating dtype to run in; None as it is.
    dtype: torch.dtype | None
    examples: Mapping[ArgumentKey, Example] = field(default_factory=dict)
    #: Optional arguments that the model does not take.
    dropped: tuple[str, ...] = ()
    #: Constant keyword arguments.
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, spec: ModelSpec, module: nn.Module, dtype: torch.dtype | None
    ) -> SplitSource:
        """Return a module as what can be split.

        Raises
        ------
        CannotSplit
            It has no layers, or they have no sizes.
        """
        name = spec.name
        if isinstance(module, torch.jit.ScriptModule):
            raise CannotSplit(name, "a TorchScript program is one piece", AS_MODULE)
        tensors = (*module.parameters(), *module.buffers())
        if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
            reason = "lazy layers have no sizes yet"
            raise CannotSplit(name, reason, "call it once on an example row")
        return cls(spec, module, dtype)

    def called(
        self, examples: Mapping[ArgumentKey, Example], extra: Mapping[str, Any]
    ) -> SplitSource:
        """Return it with the arguments of a call.

        Raises
        ------
        ArityMismatch
            It takes others.
        """
        signature = inspect.signature(self.module.forward)
        found = taken(self.spec.name, "forward", signature, examples, extra)
        dropped = tuple(str(key) for key in examples if key not in found)
        extra = without_cache(self.module, signature, extra)
        return replace(self, examples=found, dropped=dropped, extra=extra)

    @property
    def floating(self) -> torch.dtype:
        """The dtype of floating inputs."""
        own = floating_dtype(self.module)
        return self.dtype or own or torch.get_default_dtype()

    def arguments(self) -> dict[ArgumentKey, torch.Tensor]:
        """Return arguments of zeros."""
        made = {}
        for key, example in self.examples.items():
            dtype = {"floating": self.floating, **vars(torch)}.get(example.dtype)
            if not isinstance(dtype, torch.dtype):
                reason = (
                    f"{label(key)} holds {example.dtype}, of which no tensor is made"
                )
                raise CannotSplit(self.spec.name, reason)
            shape = [TOKENS if size is None else size for size in example.shape]
            made[key] = torch.zeros(ROWS, *shape, dtype=dtype)
        return made

    # Its tensors

    def traceable(self, mode: FakeTensorMode) -> nn.Module:
        """Return a copy with fake parameters and real buffers, in eval mode."""

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            with mode:
                return self._empty(tensor, "cpu")

        return self._copy(fake, self._value)

    @cached_property
    def on_meta(self) -> nn.Module:
        """A copy with parameters and buffers on meta, in eval mode."""
        return self._copy(self._empty, self._empty)

    def unsaved(self) -> dict[str, torch.Tensor]:
        """Return the buffers that no checkpoint holds, by all of their names."""
        return {
            f"{path}.{name}" if path else name: self._value(buffer)
            for path, layer in self.module.named_modules(remove_duplicate=False)
            for name, buffer in layer._buffers.items()
            if buffer is not None and name in layer._non_persistent_buffers_set
        }

    def _copy(
        self,
        parameter: Callable[[torch.Tensor], torch.Tensor],
        buffer: Callable[[torch.Tensor], torch.Tensor],
    ) -> nn.Module:
        memo: dict[int, Any] = {
            id(tensor): nn.Parameter(parameter(tensor), requires_grad=False)
            for tensor in self.module.parameters()
        }
        memo.update((id(tensor), buffer(tensor)) for tensor in self.module.buffers())
        return structure_copy(self.module, memo, lambda t: t.detach().clone())

    def _empty(self, tensor: torch.Tensor, device: str = "meta") -> torch.Tensor:
        shape, stride, dtype = tensor.shape, tensor.stride(), self._converted(tensor)
        return torch.empty_strided(shape, stride, dtype=dtype, device=device)

    def _value(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to("cpu", self._converted(tensor))

    def _converted(self, tensor: torch.Tensor) -> torch.dtype:
        """Return the dtype in which a tensor of the model will be used."""
        return (self.dtype if tensor.is_floating_point() else None) or tensor.dtype
