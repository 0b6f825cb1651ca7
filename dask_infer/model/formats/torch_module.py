"""Torch modules: pickled as they are at the call, their tensors in one file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.format import (
    Format,
    NotAModelError,
    Recognised,
    read_object,
    with_article,
)
from dask_infer.model.identity.content_walk import uncompiled
from dask_infer.model.runtime.compiled import compile_arguments
from dask_infer.model.runtime.footprint import tensor_bytes
from dask_infer.model.runtime.loaded_model import ModuleModel
from dask_infer.model.runtime.place_module import Placement, in_dtype, place
from dask_infer.model.source import ModelSource
from dask_infer.spec.model_spec import ModelSpec

#: Wrappers of training, which no prediction needs.
_PARALLEL = (
    torch.nn.parallel.DataParallel,
    torch.nn.parallel.DistributedDataParallel,
)


class TorchModuleFormat(Format):
    """A ``torch.nn.Module``; what `torch.compile` wrapped is compiled on the worker."""

    kind = "module"

    def recognise(self, given: Any, method: str | None) -> Recognised | None:
        """Return the module below compilation and training wrappers."""
        model = module_given(given)
        if not isinstance(model, torch.nn.Module):
            if model is given:
                return None
            raise NotAModelError(
                "ModelSource.from_module takes a torch.nn.Module, not "
                f"{with_article(type(model).__name__)}"
            )
        module, compile = unwrap(model)
        _check_weights(module)
        found = self.pickled(module)
        nbytes = tensor_bytes(module)
        found.spec = replace(found.spec, compile=compile, nbytes=nbytes)
        return found

    def load(self, spec: ModelSpec, placement: Placement) -> ModuleModel:
        """Load the module from the content store."""
        module = in_dtype(spec, placement, lambda: read_module(spec))
        return place(spec, module, placement.device)

    def open_to_split(self, spec: ModelSpec, live: Any) -> torch.nn.Module:
        """Return the caller's module, else the pickled one, its tensors mapped."""
        is_module = isinstance(live, torch.nn.Module)
        return unwrap(live if is_module else read_module(spec))[0]


def module_given(given: Any) -> Any:
    """Return what `ModelSource.from_module` holds, all else as it is."""
    is_source = isinstance(given, ModelSource) and given.kind == "module"
    return given.target if is_source else given


def read_module(spec: ModelSpec) -> torch.nn.Module:
    """Unpickle the module of `spec`, its tensors mapped from the store's file."""
    module = read_object(spec)
    if not isinstance(module, torch.nn.Module):
        raise ModelLoadError(f"{spec.name}: {type(module).__name__} is no torch module")
    return module


def unwrap(
    module: torch.nn.Module,
) -> tuple[torch.nn.Module, tuple[tuple[str, object], ...] | None]:
    """Return the user's module, and what it was compiled with."""
    compile = None
    while True:
        found = compile_arguments(module)
        compile = compile if found is None else found
        if (inner := uncompiled(module)) is not module:
            module = inner
        elif isinstance(module, _PARALLEL):
            module = module.module
        else:
            return module, compile


def _check_weights(module: torch.nn.Module) -> None:
    tensors = (*module.named_parameters(), *module.named_buffers())
    for name, tensor in tensors:
        if torch.nn.parameter.is_lazy(tensor):
            raise ModelLoadError(
                f"{type(module).__name__} has lazy layers without weights ({name}); "
                "call it on one batch first"
            )
        if tensor.is_meta:
            raise ModelLoadError(
                f"{type(module).__name__} is on the meta device and has no weights "
                f"({name}); pass ModelSource.from_factory(build, weights=path)"
            )
