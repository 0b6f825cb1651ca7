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
        if not isinstance(given, torch.nn.Module):
            return None
        module, compile = unwrap(given)
        if method is None:
            _check_forward(module)
        _check_weights(module)
        found = self.pickled(module, module.modules())
        nbytes = tensor_bytes(module)
        found.spec = replace(found.spec, compile=compile, nbytes=nbytes)
        return found

    def load(self, spec: ModelSpec, placement: Placement) -> ModuleModel:
        """Load the module from the content store."""
        module = in_dtype(spec, placement, lambda: read_object(spec))
        return place(spec, module, placement.device)

    def open_to_split(self, spec: ModelSpec, live: Any) -> torch.nn.Module:
        """Return the caller's module, else the pickled one, its tensors mapped."""
        is_module = isinstance(live, torch.nn.Module)
        return unwrap(live if is_module else read_object(spec))[0]


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


def _check_forward(module: torch.nn.Module) -> None:
    """Refuse containers of layers, which torch does not call either."""
    forward = getattr(module.forward, "__func__", None)
    own = type(module).__call__ is not torch.nn.Module.__call__
    if forward is torch.nn.Module.forward and not own:
        name = type(module).__name__
        raise NotAModelError(
            f"{with_article(name)} has no forward: it holds layers and does not call "
            "them; pass an nn.Sequential of them, or a module whose forward calls them"
        )


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
