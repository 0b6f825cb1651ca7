"""Tensors by name, from wherever a model keeps them: only those that are asked for.

What is asked for and nothing else is read: safetensors files and the content store's
pickles are mapped, so tensors that nobody touches take no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.huggingface import build_architecture, safetensors_of
from dask_infer.model.formats.torch_module import read_module
from dask_infer.model.formats.torchscript import file_of
from dask_infer.model.runtime.safetensors_files import safetensors_files
from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.archive import tensors_in
from dask_infer.model.split.export.sentence_pipeline import build_transformer, entries
from dask_infer.model.split.huggingface_names import convert
from dask_infer.spec.model_spec import ModelSpec

Tensors = dict[str, torch.Tensor]
#: Other names of each tensor, which a checkpoint may use in its place.
Names = Mapping[str, tuple[str, ...]]


class Checkpoint:
    """safetensors files, opened where a tensor of theirs is asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            self._files.update(dict.fromkeys(self._handle(file).keys(), file))

    def __contains__(self, name: object) -> bool:
        return name in self._files

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._files)

    def get(self, name: str) -> torch.Tensor:
        """Return one tensor, mapped."""
        tensor: torch.Tensor = self._handle(self._files[name]).get_tensor(name)
        return tensor

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ModelLoadError(
                    f"{file} is no readable safetensors file: {error}"
                ) from error
        return self._open[file]


def read_tensors(spec: ModelSpec, names: Names) -> Tensors:
    """Read the tensors of these names, and no others.

    Parameters
    ----------
    names
        What to read; for each, the names that tied tensors have beside it.

    Raises
    ------
    ModelLoadError
        If some are not where the model keeps its weights.
    """
    found = _READERS[spec.kind](spec, names)
    missing = sorted(names.keys() - found.keys())
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        where = spec.weights or spec.path or spec.name
        raise ModelLoadError(f"{where} lacks weights of {spec.name}: {some}")
    return found


def _from_module(spec: ModelSpec, names: Names) -> Tensors:
    held = dict(named_tensors(read_module(spec)))
    return {name: held[name].detach() for name in names if name in held}


def _from_weights(spec: ModelSpec, names: Names) -> Tensors:
    return _direct(Checkpoint(safetensors_files(Path(str(spec.weights)))), names)


def _from_directory(spec: ModelSpec, names: Names) -> Tensors:
    return _checkpoint(spec, names, lambda: build_architecture(spec))


def _checkpoint(spec: ModelSpec, names: Names, build: Callable[[], Any]) -> Tensors:
    checkpoint = Checkpoint(safetensors_of(spec))
    found = _direct(checkpoint, names)
    rest = {name: tied for name, tied in names.items() if name not in found}
    return {**found, **convert(build, checkpoint, rest)} if rest else found


def _from_pipeline(spec: ModelSpec, names: Names) -> Tensors:
    """Read each module's tensors from its own directory."""
    found = {}
    listed = entries(spec)
    for place, entry in enumerate(listed):
        path = f"rest.{place - 1}." if place else "transformer."
        own = {
            name.removeprefix(path): tuple(t.removeprefix(path) for t in tied)
            for name, tied in names.items()
            if name.startswith(path)
        }
        if not own:
            continue
        part = replace(spec, path=str(Path(str(spec.path)) / entry["path"]))
        read = _checkpoint(part, own, lambda: build_transformer(spec))
        found.update({f"{path}{name}": tensor for name, tensor in read.items()})
    return found


def _from_program(spec: ModelSpec, names: Names) -> Tensors:
    every = {n: name for name, tied in names.items() for n in (*tied, name)}
    with file_of(spec) as path:
        found = tensors_in(path, every)
    return {every[name]: tensor for name, tensor in found.items()}


def _direct(checkpoint: Checkpoint, names: Names) -> Tensors:
    found = {}
    for name, tied in names.items():
        known = next((n for n in (name, *tied) if n in checkpoint), None)
        if known is not None:
            found[name] = checkpoint.get(known)
    return found


_READERS: dict[str, Callable[[ModelSpec, Names], Tensors]] = {
    "module": _from_module,
    "factory": _from_weights,
    "huggingface": _from_directory,
    "sentence-transformers": _from_pipeline,
    "exported": _from_program,
}
