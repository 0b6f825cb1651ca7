"""Models in files: ``torch.export`` programs, TorchScript and pickled modules."""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.formats.archive_vetting import Refused, vet_archive
from dask_infer.model.formats.huggingface import import_library
from dask_infer.model.formats.torch_module import (
    Placement,
    convert,
    freeze,
    in_dtype,
    needs_conversion,
    place,
)
from dask_infer.model.runtime.footprint import floating_dtype
from dask_infer.model.runtime.loaded_model import ModuleModel
from dask_infer.model.store.blob_store import default_store
from dask_infer.spec.model_spec import ModelSpec

#: Torch deserialises one program at a time (a module-level variable holds it); warnings
#: are filtered for the whole process.
_one_program = threading.Lock()

#: How torch words a batch of another size than the exported one.
_STATIC_ROWS = re.compile(
    r"(?:size\(\)\[0\] == |shape\[0\] to be equal to |dimension 0 .* equal to )(\d+)"
)

#: How torch says that it does not know a model's output class: its module.
_UNREGISTERED = re.compile(r"Deserializing (transformers\.[\w.]+)\.\w+ in pytree")


def exported_model(spec: ModelSpec, placement: Placement) -> ModuleModel:
    """Load a ``*.pt2`` program; without trust only where that runs no code."""
    with file_of(spec) as path:
        program = read_program(path, spec.trust)
    check_dtype(spec, program, placement.dtype)
    if placement.device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, placement.device)
    module = _as_module(program)
    freeze(module)
    return ProgramModel(spec, module, placement.device)


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


def load_exported(path: str, trust: bool) -> torch.nn.Module:
    """Return a ``*.pt2`` program as a module on the CPU.

    Raises
    ------
    ModelLoadError
        If it is not trusted and loading it could run code.
    """
    return _as_module(read_program(path, trust))


def _as_module(program: Any) -> torch.nn.Module:
    # Guards are source text in the file; sizes are checked without them.
    module: torch.nn.Module = program.module(check_guards=False)
    return module


def read_program(path: str, trust: bool) -> Any:
    """Return a ``*.pt2`` program; without trust only where loading runs no code."""
    if not trust:
        _vet(path)
    with _one_program:
        try:
            return _deserialize(path, trust)
        except NotImplementedError as error:
            # Outputs of Hugging Face models are known to torch once they are imported.
            missing = _UNREGISTERED.search(str(error))
            if missing is None:
                raise
            import_library(missing[1], what=path)
            return _deserialize(path, trust)


def _deserialize(path: str, trust: bool) -> Any:
    if trust:
        return torch.export.load(path)
    # torch.export.load would go on with an older, unvetted format on an error.
    from torch.export.pt2_archive._package import load_pt2

    programs = load_pt2(path).exported_programs
    if "model" not in programs:
        raise ModelLoadError(
            f"{path} holds no program; write it with torch.export.save of torch 2.8 or "
            "later"
        )
    return programs["model"]


def _vet(path: str) -> None:
    try:
        vet_archive(path)
    except Refused as error:
        raise ModelLoadError(
            f"{path} could run code when loaded: {error}; if you trust it pass "
            "ModelSource.from_path(path, trust=True)"
        ) from error


def check_dtype(spec: ModelSpec, program: Any, dtype: torch.dtype | None) -> None:
    """Refuse another floating dtype than the program was exported in."""
    tensors = (*program.state_dict.values(), *program.constants.values())
    kinds = {t.dtype for t in tensors if isinstance(t, torch.Tensor)}
    floating = {kind for kind in kinds if kind.is_floating_point}
    if dtype is not None and floating - {dtype}:
        has = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in floating))
        raise ModelLoadError(
            f"{spec.name} was exported in {has}, which is part of the program; export "
            f"it again in {str(dtype).removeprefix('torch.')} or leave dtype= out"
        )


class ProgramModel(ModuleModel):
    """An exported program; it cannot be trained, so there is no ``eval()``."""

    def __init__(
        self, spec: ModelSpec, module: torch.nn.Module, device: torch.device
    ) -> None:
        super().__init__(spec, module, device)
        self._bind = _binding(module)

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None = None
    ) -> Any:
        """Return the output; arguments go by name or position, as one likes."""
        with self._explained():
            return super().call(*self._bind(args, kwargs), method)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (AssertionError, RuntimeError) as error:
            rows = _STATIC_ROWS.search(str(error))
            if rows is None:
                raise
            raise InputError(
                f"{self.spec.name} was exported for batches of exactly {rows[1]} rows; "
                "export it again with a dynamic dimension 0: dynamic_shapes="
                '{"x": {0: torch.export.Dim("rows")}}'
            ) from error


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _binding(module: torch.nn.Module) -> Callable[..., Call]:
    """How to sort arguments into those that were positional at the export."""
    signature = inspect.signature(module.forward)
    structure: Any = module._in_spec
    positional, keywords = structure.children()
    names = list(signature.parameters)
    first = names[: positional.num_children]

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names) or set(given) != {*first, *keywords.context}:
            return args, kwargs  # the program's own error says what it expected
        return (
            tuple(given[name] for name in first),
            {name: given[name] for name in keywords.context},
        )

    return bind


def torchscript_model(spec: ModelSpec, placement: Placement) -> ModuleModel:
    """Load a TorchScript archive or a pickled module, both only if trusted."""
    with file_of(spec) as path:
        module = load_torchscript(path, spec.trust)
        if isinstance(module, torch.jit.ScriptModule):
            return _place_script(spec, module, placement)
        if needs_conversion(module, placement.dtype):
            module = in_dtype(spec, placement, lambda: _unpickle(path))
    return place(spec, module, placement.device)


def load_torchscript(path: str, trust: bool) -> torch.nn.Module:
    """Return the module of a ``*.pt`` or ``*.pth`` file on the CPU.

    Raises
    ------
    ModelLoadError
        If it is not trusted, or holds no module.
    """
    if not trust:
        raise ModelLoadError(_untrusted(path))
    if not _is_torchscript(path):
        return _unpickle(path)
    load: Callable[..., torch.nn.Module] = torch.jit.load
    with _one_program, warnings.catch_warnings():
        # The user was told when the script was saved.
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


def _untrusted(path: str) -> str:
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception:
        content = None
    if isinstance(content, dict):
        return _weights_only(path)
    return (
        f"{path} can run code when loaded; if you trust it pass "
        "ModelSource.from_path(path, trust=True)"
    )


def _weights_only(path: str) -> str:
    return (
        f"{path} holds weights only; save them with safetensors and pass "
        'ModelSource.from_factory(build, weights="model.safetensors")'
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
        raise ModelLoadError(_weights_only(path))
    if not isinstance(module, torch.nn.Module):
        raise ModelLoadError(f"{path} holds a {type(module).__name__}, no torch module")
    return module
