"""TorchScript archives and pickled modules, ``*.pt``: both can run code."""

from __future__ import annotations

import contextlib
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.format import Format, Recognised, load_errors
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.runtime.footprint import floating_dtype
from dask_infer.model.runtime.loaded_model import ModuleModel
from dask_infer.model.runtime.place_module import (
    Placement,
    convert,
    in_dtype,
    needs_conversion,
    place,
)
from dask_infer.model.runtime.safetensors_files import damaged, refuse_empty
from dask_infer.model.store.blob_store import default_store, write_pinned
from dask_infer.spec.model_spec import Blob, ModelSpec

#: Torch deserialises one program at a time (a module-level variable holds it); warnings
#: are filtered for the whole process.
one_program = threading.Lock()


class TorchScriptFormat(Format):
    """A script, or whatever module a file of ``torch.save`` holds."""

    kind = "torchscript"
    pattern = "*.pt or *.pth (trusted)"
    suffixes = (".pt", ".pth")

    def recognise(self, given: Any, method: str | None) -> Recognised | None:
        """Return a script of this process, written to the content store at once."""
        if not isinstance(given, torch.jit.ScriptModule):
            return None
        key = content_key((self.kind, given))
        return stored_program(self.kind, given, ".pt", given.save_to_buffer(), key)

    def check(self, path: Path, trust: bool) -> None:
        """Refuse what torch did not write, and all that is not trusted."""
        refuse_empty(path)
        with path.open("rb") as file:
            is_pickle = file.read(1) == b"\x80"  # how torch wrote before its archives
        if not is_pickle:
            check_zip(path)
        if not trust:
            raise ModelLoadError(_needs_trust(path))

    def traceable_module(self, spec: ModelSpec, live: Any) -> torch.nn.Module:
        """Load the script: its shapes are not known without its weights."""
        with load_errors(spec):
            module: torch.nn.Module = self.load(spec, Placement()).target
        return module

    def load(self, spec: ModelSpec, placement: Placement) -> ModuleModel:
        """Load the archive or the pickled module, both only if trusted."""
        with file_of(spec) as path:
            if not spec.trust:
                raise ModelLoadError(_needs_trust(path))
            if _is_torchscript(path):
                return _place_script(spec, _load_script(path), placement)
            module = in_dtype(spec, placement, lambda: _unpickle(path))
        return place(spec, module, placement.device)


def stored_program(
    kind: str, program: Any, suffix: str, data: bytes, key: str
) -> Recognised:
    """Store a program of this process as the file that it would be loaded from.

    It is written at once: reading its shapes loads it.
    """
    blob = Blob(f"{key}{suffix}")
    spec = ModelSpec(
        key=key,
        name=getattr(program, "original_name", type(program).__name__),
        kind=kind,
        blob=blob,
        trust=True,
        nbytes=len(data),
    )

    def write(target: Path) -> None:
        target.write_bytes(data)

    write_pinned(blob, write, default_store(), nbytes=len(data))
    return Recognised(spec, live=program)


@contextlib.contextmanager
def file_of(spec: ModelSpec) -> Iterator[str]:
    """Path of the program, which stays for the time of a load.

    A program that was an object of the client lies in the content store.
    """
    if spec.blob is None:
        yield str(spec.path)
        return
    store = default_store()
    with store.pin(spec.blob.key):
        yield str(store.require(spec.blob.key))


def check_zip(path: Path) -> None:
    """Raise `ModelLoadError` unless a file is a whole zip archive."""
    refuse_empty(path)
    if not zipfile.is_zipfile(path):
        damaged(path, "is not a zip archive, as torch writes them (truncated?)")


def _load_script(path: str) -> torch.jit.ScriptModule:
    load: Callable[..., torch.jit.ScriptModule] = torch.jit.load
    with one_program, warnings.catch_warnings():
        # The user was warned when the script was saved.
        warnings.simplefilter("ignore", DeprecationWarning)
        return load(path, map_location="cpu")


def _place_script(
    spec: ModelSpec, module: torch.nn.Module, placement: Placement
) -> ModuleModel:
    if needs_conversion(module, placement.dtype):
        module = convert(module, cast(torch.dtype, placement.dtype))
    elif placement.dtype is not None and floating_dtype(module) is None:
        raise ModelLoadError(
            f"{spec.name} is frozen: its weights are part of the program; script it "
            "again in that dtype or leave dtype= out"
        )
    if hasattr(module, "training"):  # a frozen program has no modes
        return place(spec, module, placement.device)
    return ModuleModel(spec, module.to(placement.device), placement.device)


def _needs_trust(path: str | Path) -> str:
    return (
        f"{path} can run code when it is loaded; if you trust it pass "
        "ModelSource.from_path(path, trust=True)"
    )


def _is_torchscript(path: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unpickle(path: str) -> torch.nn.Module:
    module = torch.load(
        path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=False
    )
    if isinstance(module, dict):
        raise ModelLoadError(
            f"{path} holds weights only; save them with safetensors and pass "
            'ModelSource.from_factory(build, weights="model.safetensors")'
        )
    if not isinstance(module, torch.nn.Module):
        raise ModelLoadError(f"{path} holds a {type(module).__name__}, no torch module")
    return module
