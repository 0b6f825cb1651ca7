"""What the user gave, recognised: a spec that travels, and what must be written.

Recognising looks at the model without calling or changing it. What has to be in the
content store is written by `Recognised.snapshot`, once everything else about the call
has been checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.format import NotAModelError, Recognised, with_article
from dask_infer.model.identity.file_key import existing_path
from dask_infer.model.registry import FORMATS
from dask_infer.model.source import ModelSource

__all__ = ["NotAModelError", "Recognised", "recognise"]


def recognise(model: Any, method: str | None = None) -> Recognised:
    """Return what `model` is: the first format that knows it decides.

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
    if isinstance(model, ModelSource) and model.kind == "path":
        return _at_path(model.target, model.trust)
    if isinstance(model, (str, os.PathLike)):
        return _at_path(os.fspath(model), trust=False)
    if isinstance(model, ModelSource) and model.kind == "module":
        model = model.target
        if not isinstance(model, torch.nn.Module | torch.export.ExportedProgram):
            raise NotAModelError(
                "ModelSource.from_module takes a torch.nn.Module, not "
                f"{with_article(type(model).__name__)}"
            )
    for format in FORMATS:
        if (found := format.recognise(model, method)) is not None:
            return found
    if isinstance(model, Mapping) and all(map(torch.is_tensor, model.values())):
        raise NotAModelError(
            "these are weights only; pass their module, after "
            "module.load_state_dict(weights), or save them with safetensors and pass "
            "ModelSource.from_factory(build, weights=path)"
        )
    raise NotAModelError(
        f"{with_article(type(model).__name__)} is no model; pass a torch module, a "
        "path (*.pt2, *.onnx, a Hugging Face directory, ...), an estimator with "
        "predict, a class, a function, or a dask_infer.ModelSource"
    )


def _at_path(given: str, trust: bool) -> Recognised:
    path = existing_path(given, "there is no model")
    for format in FORMATS:
        if format.is_at(path):
            return format.recognise_path(path, trust)
    named = [format for format in reversed(FORMATS) if format.pattern]
    if path.is_dir():
        wanted = " nor ".join(f.pattern for f in named if not f.suffixes)
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
        raise ModelLoadError(
            f"{path} holds no model: it has neither {wanted}, but "
            f"{found or 'nothing at all'}; pass the directory that save_pretrained() "
            "or save() wrote"
        )
    files = ", ".join(format.pattern for format in named if format.suffixes)
    folders = " or ".join(format.pattern for format in named if not format.suffixes)
    advice = _advice(path) or f"pass {files}, or a directory with {folders}"
    raise ModelLoadError(f"{path} is no model that can be loaded: {advice}")


def _advice(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return (
            "it holds weights only; pass ModelSource.from_factory(build, weights=path)"
        )
    if suffix in (".pkl", ".pickle", ".joblib", ".bin", ".ckpt"):
        return "load it yourself, if you trust it, and pass the object"
    return None
