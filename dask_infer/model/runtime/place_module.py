"""Torch modules on their device, in their dtype, one copy for a host's processes."""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch

from dask_infer.model.identity import pickling
from dask_infer.model.runtime.footprint import tensors_of
from dask_infer.model.runtime.loaded_model import CPU, ModuleModel
from dask_infer.model.store.blob_store import default_store, read_blob
from dask_infer.spec.model_spec import Blob, ModelSpec


class Placement(NamedTuple):
    """Where and in which floating dtype a model is to live."""

    device: torch.device = CPU
    #: None: as it is.
    dtype: torch.dtype | None = None


def place(
    spec: ModelSpec, module: torch.nn.Module, device: torch.device
) -> ModuleModel:
    """Make `module`, which has no other user, ready to run on `device`."""
    freeze(module)
    module.eval()
    _turn_off_cache(module)
    if device.type != "cpu":
        module = module.to(device)
    return ModuleModel(spec, module, device)


def _turn_off_cache(module: torch.nn.Module) -> None:
    """Compute no key-value cache in a forward; ``generate`` has its own setting."""
    if not type(module).__module__.startswith("transformers."):
        return
    configs: list[Any] = [getattr(part, "config", None) for part in module.modules()]
    for config in configs:
        if getattr(config, "use_cache", None):
            config.use_cache = False


def freeze(module: torch.nn.Module) -> None:
    """Let no parameter ask for gradients (scripts refuse ``requires_grad_``)."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def needs_conversion(module: torch.nn.Module, dtype: torch.dtype | None) -> bool:
    """Whether any floating parameter or buffer has another dtype."""
    if dtype is None:
        return False
    floating = (t for t in tensors_of(module) if t.is_floating_point())
    return any(tensor.dtype != dtype for tensor in floating)


def in_dtype(
    spec: ModelSpec, placement: Placement, build: Callable[[], torch.nn.Module]
) -> torch.nn.Module:
    """Build a module in the dtype asked for, which is one copy a host on the CPU."""
    module, dtype = build(), placement.dtype
    if dtype is None or not needs_conversion(module, dtype):
        return module
    if placement.device.type != "cpu":
        return convert(module, dtype)
    del module
    return shared(spec, str(dtype), lambda: convert(build(), dtype))


def convert(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Cast floating parameters and buffers, in place; what is shared stays shared."""

    @functools.cache  # by identity, as tensors are hashed
    def cast_once(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    freeze(module)
    apply: Callable[..., torch.nn.Module] = module._apply
    return apply(cast_once)


def shared(
    spec: ModelSpec, variant: str, build: Callable[[], torch.nn.Module]
) -> torch.nn.Module:
    """Build a module once on this host; every process maps the same file.

    The entry's name depends on the library versions: pickles of modules do.
    """
    transformers = getattr(sys.modules.get("transformers"), "__version__", None)
    content = (spec.key, spec.kind, variant, torch.__version__, transformers)
    key = hashlib.sha256(repr(content).encode()).hexdigest()
    store = default_store()
    with store.pin(key):
        store.write(key, lambda target: pickling.to_file(build(), target))
        return cast(torch.nn.Module, read_blob(Blob(key)))
