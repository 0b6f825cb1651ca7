"""What the user gave, recognised: a spec that travels, and what must be written.

Building a spec looks at the model without calling or changing it. What has to be in
the content store is written by `Recognised.snapshot`, once everything else about the
call has been checked.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.files import spec_of_path, weights_key, weights_size
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.identity.content_walk import uncompiled
from dask_infer.model.runtime.compiled import compile_arguments
from dask_infer.model.source import ModelSource
from dask_infer.model.store.blob_store import (
    PendingBlob,
    Store,
    default_store,
    write_pinned,
)
from dask_infer.spec.model_spec import Blob, Kind, ModelSpec


class NotAModelError(ModelLoadError, TypeError):
    """What was given is nothing that can be run."""


@dataclass
class Recognised:
    """A model on its way to the workers."""

    spec: ModelSpec
    #: What may be looked at here: the user's module, estimator, program or factory.
    live: object | None = None
    #: A factory that will build a torch module.
    builds_module: bool = False
    #: What `snapshot` writes; None where nothing has to be written.
    pending: PendingBlob | None = None
    #: The model's own tokenizer, where the user's object has one.
    tokenizer: Any = None

    def snapshot(self, store: Store | None = None) -> None:
        """Write what workers will read; it stays on disk while the spec's blob lives.

        Raises
        ------
        ModelLoadError
            If the store cannot take it.
        """
        if self.pending is not None:
            self.pending.write(store)
            self.pending = None


def recognise(model: Any, method: str | None = None) -> Recognised:
    """Say what `model` is.

    Parameters
    ----------
    model
        A torch module, a path, an estimator, a class, a callable or a `ModelSource`.
    method
        What will be called: an object that has it is an estimator, whatever else it
        lacks.

    Raises
    ------
    ModelLoadError
        If it cannot be found, trusted, read or sent to workers.
    NotAModelError
        If it is none of these.
    """
    if isinstance(model, ModelSource):
        return _from_source(model)
    if isinstance(model, (str, os.PathLike)):
        return Recognised(spec_of_path(os.fspath(model)))
    if isinstance(model, type):
        return _from_factory(ModelSource.from_factory(model))
    torch = sys.modules.get("torch")
    found = None if torch is None else _from_torch(model, torch)
    if found is not None:
        return found
    if _is_estimator(model):
        return _pickled(model, "estimator", live=model)
    if callable(model):
        return _pickled(model, "callable")
    if method is not None and callable(getattr(model, method, None)):
        return _pickled(model, "estimator", live=model)
    raise NotAModelError(
        f"{_article(type(model).__name__)} is no model; pass a torch module, a path "
        "(*.pt2, *.onnx, a Hugging Face directory, ...), an estimator with predict, a "
        "class, a function, or a dask_infer.ModelSource"
    )


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _from_source(source: ModelSource) -> Recognised:
    if source.kind == "path":
        return Recognised(spec_of_path(source.target, source.trust))
    if source.kind == "factory":
        return _from_factory(source)
    if source.kind == "estimator":
        return _pickled(source.target, "estimator", live=source.target)
    import torch

    found = _from_torch(source.target, torch)
    if found is None:
        name = type(source.target).__name__
        raise NotAModelError(
            f"ModelSource.from_module takes a torch.nn.Module, not {_article(name)}"
        )
    return found


# Objects that are pickled


def _pickled(model: Any, kind: Kind, live: object | None = None) -> Recognised:
    key = content_key((kind, model))
    pending = PendingBlob(model, key)
    spec = ModelSpec(
        key=key, name=_name(model), kind=kind, blob=pending.blob, nbytes=pending.nbytes
    )
    return Recognised(spec, live, pending=pending)


def _name(model: Any) -> str:
    if isinstance(model, functools.partial):
        return _name(model.func)
    name = getattr(model, "__name__", None)
    if not isinstance(name, str):
        return type(model).__name__
    return "lambda" if name == "<lambda>" else name


def _from_factory(source: ModelSource) -> Recognised:
    factory = source.target
    if not callable(factory):
        raise NotAModelError(
            f"ModelSource.from_factory takes a class or function that builds the "
            f"model, not {_article(type(factory).__name__)}"
        )
    build = factory
    if source.args or source.kwargs:
        build = functools.partial(factory, *source.args, **source.kwargs)
    found = _pickled(build, "factory", live=build)
    found.builds_module = _is_module_class(factory)
    if source.weights is None:
        # What it will take nobody knows; the pickle says nothing about it.
        found.spec = replace(found.spec, nbytes=0)
        return found
    path, key = weights_key(source.weights)
    found.builds_module = True
    found.spec = replace(
        found.spec,
        key=content_key((found.spec.key, key)),
        weights=path,
        nbytes=weights_size(path),
    )
    return found


def _is_module_class(factory: object) -> bool:
    torch = sys.modules.get("torch")
    known = torch is not None and isinstance(factory, type)
    return known and issubclass(factory, torch.nn.Module)  # type: ignore[arg-type, union-attr]


_PREDICTS = ("predict", "predict_proba", "decision_function")


def _is_estimator(model: Any) -> bool:
    # A Hugging Face pipeline has a predict too, but is meant to be called.
    if any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__):
        return False
    if any(callable(getattr(model, name, None)) for name in _PREDICTS):
        return True
    # What is fitted is an estimator, if only to say which methods it has.
    fitted = ("transform", "get_params")
    return callable(getattr(model, "fit", None)) and any(
        callable(getattr(model, name, None)) for name in fitted
    )


# Torch


def _from_torch(model: Any, torch: Any) -> Recognised | None:
    if isinstance(model, torch.jit.ScriptModule):
        return _from_program(model, "torchscript", ".pt", model.save_to_buffer())
    export = sys.modules.get("torch.export")
    if isinstance(model, getattr(export, "ExportedProgram", ())):
        buffer = io.BytesIO()
        torch.export.save(model, buffer)
        return _from_program(model, "exported", ".pt2", buffer.getvalue())
    if isinstance(model, torch.nn.Module):
        return _from_module(model, torch)
    return None


def _from_module(model: Any, torch: Any) -> Recognised:
    from dask_infer.model.formats.sentence_transformers import taken_apart

    module, compile = _unwrap(model, torch)
    if (apart := taken_apart(module)) is not None:
        found = _from_module(apart.module, torch)
        found.tokenizer = apart.tokenizer
        found.spec = replace(found.spec, name=type(module).__name__, compile=compile)
        return found
    _check_weights(module, torch)
    found = _pickled(module, "module", live=module)
    from dask_infer.model.runtime.footprint import tensor_bytes

    found.spec = replace(found.spec, compile=compile, nbytes=tensor_bytes(module))
    return found


def _unwrap(
    module: Any, torch: Any
) -> tuple[Any, tuple[tuple[str, object], ...] | None]:
    """Return the user's module below compilation and training wrappers."""
    parallel = torch.nn.parallel
    wrappers = (parallel.DataParallel, parallel.DistributedDataParallel)
    compile = None
    while True:
        found = compile_arguments(module)
        compile = compile if found is None else found
        if (inner := uncompiled(module)) is not module:
            module = inner
        elif isinstance(module, wrappers):
            module = module.module
        else:
            return module, compile


def _check_weights(module: Any, torch: Any) -> None:
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


def _from_program(program: Any, kind: Kind, suffix: str, data: bytes) -> Recognised:
    """Store a program of this process as the file that it would be loaded from.

    It is written at once: reading its shapes loads it.
    """
    store, key = default_store(), content_key((kind, program))
    blob = Blob(f"{key}{suffix}")
    spec = ModelSpec(
        key=key,
        name=getattr(program, "original_name", type(program).__name__),
        kind=kind,
        blob=blob,
        trust=True,
        nbytes=len(data),
    )
    write = functools.partial(_write_bytes, data)
    write_pinned(blob, write, store, nbytes=len(data))
    return Recognised(spec, live=program)


def _write_bytes(data: bytes, target: Path) -> None:
    target.write_bytes(data)
