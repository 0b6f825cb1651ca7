"""Classes and functions that build the model on the worker."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.checkpoints.safetensors_checkpoint import (
    Checkpoint,
    Parts,
    TensorNames,
    Tensors,
)
from dask_infer.model.formats.estimator import EstimatorModel
from dask_infer.model.formats.format import (
    Format,
    NotAModelError,
    Recognised,
    no_dtype,
    read_object,
    some,
    with_article,
)
from dask_infer.model.formats.torch_module import unwrap
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.identity.file_key import existing_path, file_key
from dask_infer.model.runtime.footprint import with_attributes
from dask_infer.model.runtime.loaded_model import FunctionModel, LoadedModel
from dask_infer.model.runtime.methods import signature_of
from dask_infer.model.runtime.parameters_on_meta import parameters_on_meta
from dask_infer.model.runtime.place_module import (
    Placement,
    convert,
    in_dtype,
    needs_conversion,
    place,
)
from dask_infer.model.runtime.safetensors_files import (
    safetensors_files,
    safetensors_header,
)
from dask_infer.model.source import ModelSource
from dask_infer.model.split_refusals import CannotSplit, cause_of
from dask_infer.spec.model_spec import ModelSpec


class FactoryFormat(Format):
    """A class, or what `ModelSource.from_factory` holds: built once on each worker."""

    kind = "factory"
    interface = "numpy"

    def recognise(self, given: Any, method: str | None) -> Recognised | None:
        """Return a class or a factory; what it builds is not looked at."""
        if isinstance(given, type):
            given = ModelSource.from_factory(given)
        if not isinstance(given, ModelSource) or given.kind != self.kind:
            return None
        build = given.target
        if not callable(build) or isinstance(build, torch.nn.Module):
            raise NotAModelError(
                f"ModelSource.from_factory takes a class or function that builds the "
                f"model, not {with_article(type(build).__name__)}; pass a model that "
                "is built already as it is"
            )
        _check_arguments(given)
        is_module = isinstance(build, type) and issubclass(build, torch.nn.Module)
        if given.args or given.kwargs:
            build = functools.partial(build, *given.args, **given.kwargs)
        found = self.pickled(build)
        if given.weights is None:
            # The size of what it builds is unknown; that of the pickle says nothing.
            found.spec = replace(found.spec, nbytes=0)
        else:
            path, files = _weights(given.weights)
            weights = file_key("weights", path, [path, *files])
            found.spec = replace(
                found.spec,
                key=content_key((found.spec.key, weights)),
                weights=str(path),
                nbytes=sum(file.stat().st_size for file in files),
            )
        found.interface = (
            "tensor" if is_module or given.weights is not None else "numpy"
        )
        return found

    def traceable_module(self, spec: ModelSpec, live: Any) -> torch.nn.Module:
        """Build on the meta device; where values are read, with real buffers."""
        with suppress(Exception), torch.device("meta"):
            return super().traceable_module(spec, live)
        return super().traceable_module(spec, live)

    def load(self, spec: ModelSpec, placement: Placement) -> LoadedModel:
        """Build the model; what it is says how it wants to be called."""
        if spec.weights is not None:
            module = in_dtype(spec, placement, lambda: build_with_weights(spec))
            return place(spec, module, placement.device)
        built = _build(spec)
        if isinstance(built, torch.nn.Module):
            if needs_conversion(built, placement.dtype):
                built = convert(built, cast(torch.dtype, placement.dtype))
            return place(spec, built, placement.device)
        if placement.dtype is not None:
            raise no_dtype(spec)
        if callable(built):
            return FunctionModel(spec, built)
        if hasattr(built, "predict"):
            return EstimatorModel(spec, built)
        raise ModelLoadError(
            f"{spec.name} builds {with_article(type(built).__name__)}, which is "
            "neither callable nor has predict; give its class a __call__(batch), or "
            "return the model"
        )

    def weight_files(self, spec: ModelSpec) -> list[Path]:
        """Return the files that fill the module."""
        return [] if spec.weights is None else safetensors_files(Path(spec.weights))

    def open_to_split(self, spec: ModelSpec, live: Any) -> torch.nn.Module:
        """Build without memory where a file brings the weights, else never."""
        if isinstance(live, torch.nn.Module):  # what it built
            return unwrap(live)[0]
        if spec.weights is None:
            raise CannotSplit(
                spec.name,
                "what it builds is only known once it is built, weights and all",
                'save the weights and pass ModelSource.from_factory(build, weights="...'
                '.safetensors")',
            )
        try:
            with parameters_on_meta():
                module = live() if callable(live) else read_object(spec)()
        except Exception as error:
            reason = f"it cannot be built without memory: {cause_of(error)}"
            raise CannotSplit(spec.name, reason) from error
        if isinstance(module, torch.nn.Module):
            return unwrap(module)[0]
        reason = f"it builds a {type(module).__name__}, which is no torch module"
        raise CannotSplit(spec.name, reason, 'use parallel="data"')

    def read_tensors(
        self, spec: ModelSpec, names: TensorNames, parts: Parts
    ) -> Tensors:
        """Return tensors of the weights file, mapped."""
        return Checkpoint(self.weight_files(spec)).read(names, parts)


def _check_arguments(source: ModelSource) -> None:
    """Refuse a class or function that needs other arguments than it is built with."""
    if (signature := signature_of(source.target)) is None:
        return
    try:
        signature.bind(*source.args, **source.kwargs)
    except TypeError as error:
        name = getattr(source.target, "__name__", repr(source.target))
        raise ModelLoadError(
            f"{name} cannot be built: {error}; pass an instance, or its arguments: "
            f"ModelSource.from_factory({name}, ...)"
        ) from error


def _weights(given: str) -> tuple[Path, list[Path]]:
    """Return the real path of the weights, and the files that they are in."""
    path = existing_path(given, "there are no weights")
    if not path.name.endswith((".index.json", ".safetensors")):
        raise ModelLoadError(
            f"weights={given!r} is no safetensors file; save the weights with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        )
    files = safetensors_files(path)
    for file in files:
        safetensors_header(file)
    return path, files


def _build(spec: ModelSpec) -> Any:
    factory: Callable[[], Any] = read_object(spec)
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
    _fill(spec, module)
    tensors = (*module.named_parameters(), *module.named_buffers())
    if unfilled := [name for name, tensor in tensors if tensor.is_meta]:
        raise ModelLoadError(
            f"{spec.name} computes {some(unfilled)} from its weights as it is built, "
            "before they are read; leave weights= out and read them in the factory, or "
            "save these buffers too"
        )
    return module


def _fill(spec: ModelSpec, module: torch.nn.Module) -> None:
    """Map the weights; parameters of several names stay one, under whichever it is."""
    checkpoint = Checkpoint(safetensors_files(Path(str(spec.weights))))
    weights = {name: checkpoint.get(name) for name in checkpoint.names}
    names_of = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names_of[id(parameter)].append(name)
    for names in names_of.values():
        known = next((weights[name] for name in names if name in weights), None)
        if known is not None and len(names) > 1:
            one = torch.nn.Parameter(known, requires_grad=False)
            weights.update(dict.fromkeys(names, one))
    built = dict(module.named_parameters(remove_duplicate=False))
    try:
        misfits = module.load_state_dict(weights, strict=False, assign=True)
    except RuntimeError as error:  # lists every tensor of another shape
        raise ModelLoadError(
            f"{spec.weights} does not fit {spec.name}: {error}; pass the weights of "
            "this architecture, or build it with its sizes"
        ) from error
    for name, parameter in module.named_parameters(remove_duplicate=False):
        with_attributes(parameter, built[name])
    for names, cause in (
        (misfits.missing_keys, f"lacks weights of {spec.name}"),
        (misfits.unexpected_keys, f"holds weights that {spec.name} does not have"),
    ):
        if names:
            raise ModelLoadError(
                f"{spec.weights} {cause}: {some(names)}; save the state_dict() of the "
                "model that is built, under its own names"
            )
