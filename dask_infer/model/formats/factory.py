"""Models that are built on the worker by the user's own class or function."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakTensorKeyDictionary

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.estimator import EstimatorModel, refuse_dtype
from dask_infer.model.formats.torch_module import (
    Placement,
    convert,
    in_dtype,
    needs_conversion,
    place,
)
from dask_infer.model.runtime.footprint import safetensors_files
from dask_infer.model.runtime.loaded_model import FunctionModel, LoadedModel
from dask_infer.model.store.blob_store import read_blob
from dask_infer.spec.model_spec import ModelSpec


def load_factory(spec: ModelSpec, placement: Placement) -> LoadedModel:
    """Build the model once; what it is tells how it wants to be called."""
    if spec.weights is not None:
        module = build_with_weights(spec)
        if needs_conversion(module, placement.dtype):
            module = in_dtype(spec, placement, lambda: build_with_weights(spec))
        return place(spec, module, placement.device)
    built = _build(spec)
    if isinstance(built, torch.nn.Module):
        if needs_conversion(built, placement.dtype):
            built = convert(built, cast(torch.dtype, placement.dtype))
        return place(spec, built, placement.device)
    refuse_dtype(spec, placement)
    if callable(built):
        return FunctionModel(spec, built)
    if hasattr(built, "predict"):
        return EstimatorModel(spec, built)
    raise ModelLoadError(
        f"{spec.name} builds a {type(built).__name__}, which is neither callable nor "
        "has predict"
    )


def _build(spec: ModelSpec) -> Any:
    if spec.blob is None:
        raise ModelLoadError(f"{spec.name}: its spec holds no pickled object")
    factory = read_blob(spec.blob)
    try:
        return factory()
    except MemoryError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{spec.name} raised {type(error).__name__} when it was built on the "
            f"worker: {error}"
        ) from error


def build_with_weights(spec: ModelSpec) -> torch.nn.Module:
    """Build without allocating parameters, then map them from the weights file."""
    with parameters_on_meta():
        module = _build(spec)
    if not isinstance(module, torch.nn.Module):
        raise ModelLoadError(
            f"{spec.name} builds a {type(module).__name__}, but weights= fills torch "
            "modules"
        )
    tied = _tied_names(module)
    weights = _read_weights(Path(str(spec.weights)))
    for names in tied:
        known = next((weights[name] for name in names if name in weights), None)
        if known is not None:
            weights.update(dict.fromkeys(names, known))
    _fill(spec, module, weights)
    for names in tied:
        _tie(module, names)
    _refuse_unfilled(spec, module)
    return module


class _Building(threading.local):
    """Whether this thread builds a model whose weights come from a file."""

    #: Stand-ins of parameters: one that is registered twice stays one.
    twins: WeakTensorKeyDictionary | None = None


_building = _Building()


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Let modules built by this thread have parameters without memory.

    Buffers stay real, unlike under ``torch.device("meta")``: those that no checkpoint
    holds (frequencies of rotary embeddings, masks) are computed as the model is built.
    """
    _building.twins = WeakTensorKeyDictionary()
    try:
        yield
    finally:
        _building.twins = None


def _to_meta(
    _module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter | None
) -> torch.nn.Parameter | None:
    """Replace a parameter as it is registered; None leaves it as it is."""
    twins = _building.twins
    if twins is None or parameter is None or parameter.is_meta:
        return None
    if isinstance(parameter, torch.nn.UninitializedParameter):
        return None
    if parameter not in twins:
        empty = torch.empty_like(parameter, device="meta")
        twins[parameter] = torch.nn.Parameter(empty, parameter.requires_grad)
    return twins[parameter]  # type: ignore[no-any-return]


# Torch keeps such hooks for the whole process; ours acts in building threads only.
register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]


def _tied_names(module: torch.nn.Module) -> list[list[str]]:
    """Names of each parameter that has several."""
    names = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    return [several for several in names.values() if len(several) > 1]


def _tie(module: torch.nn.Module, names: list[str]) -> None:
    """Make the parameter of the first name that of all."""
    parameter = module.get_parameter(names[0])
    for name in names[1:]:
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, parameter)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of the checkpoint by name, mapped from its files."""
    weights: dict[str, torch.Tensor] = {}
    for file in safetensors_files(path):
        try:
            weights.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(
                f"{file} is no readable safetensors file: {error}"
            ) from error
    return weights


def _fill(
    spec: ModelSpec, module: torch.nn.Module, weights: dict[str, torch.Tensor]
) -> None:
    try:
        names = module.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:  # lists every tensor of another shape
        raise ModelLoadError(
            f"{spec.weights} does not fit {spec.name}: {error}"
        ) from error
    if names.missing_keys:
        raise ModelLoadError(
            f"{spec.weights} lacks weights of {spec.name}: {_some(names.missing_keys)}"
        )
    if names.unexpected_keys:
        raise ModelLoadError(
            f"{spec.weights} holds weights that {spec.name} does not have: "
            f"{_some(names.unexpected_keys)}"
        )


def _refuse_unfilled(spec: ModelSpec, module: torch.nn.Module) -> None:
    tensors = (*module.named_parameters(), *module.named_buffers())
    unfilled = [name for name, tensor in tensors if tensor.is_meta]
    if unfilled:
        raise ModelLoadError(
            f"{spec.name} computes {_some(unfilled)} from its weights as it is built, "
            "before they are read; leave weights= out and read them in the factory, or "
            "save these buffers too"
        )


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
