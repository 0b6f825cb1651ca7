"""Programs of ``torch.export``, ``*.pt2``: run without the code that they come from."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.formats.checkpoints.archive_vetting import Refused, vet_archive
from dask_infer.model.formats.checkpoints.pt2_tensors import tensors_in
from dask_infer.model.formats.checkpoints.safetensors_checkpoint import (
    Parts,
    TensorNames,
    Tensors,
)
from dask_infer.model.formats.format import Format, Recognised, load_errors
from dask_infer.model.formats.torch_module import module_given
from dask_infer.model.formats.torchscript import (
    check_zip,
    file_of,
    one_program,
    stored_program,
)
from dask_infer.model.runtime.import_library import import_library
from dask_infer.model.runtime.loaded_model import ModuleModel
from dask_infer.model.runtime.place_module import Placement, freeze
from dask_infer.model.shapes.fake_model import TraceableModel
from dask_infer.spec.model_spec import ModelSpec

#: How torch words a batch of another size than the exported one.
_STATIC_ROWS = re.compile(
    r"(?:size\(\)\[0\] == |shape\[0\] to be equal to |dimension 0 .* equal to )(\d+)"
)

#: How torch says that it does not know a model's output class: its module.
_UNREGISTERED = re.compile(r"Deserializing (transformers\.[\w.]+)\.\w+ in pytree")


class ExportedProgramFormat(Format):
    """A program with its weights; without trust only what runs no code is read."""

    kind = "exported"
    pattern = "*.pt2"
    suffixes = (".pt2",)

    def recognise(self, given: Any, method: str | None) -> Recognised | None:
        """Return a program of this process, written to the content store at once."""
        program = module_given(given)
        if not isinstance(program, torch.export.ExportedProgram):
            return None
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return stored_program(self.kind, program, ".pt2", buffer.getvalue())

    def check(self, path: Path, trust: bool) -> None:
        """Refuse what is no archive."""
        check_zip(path)

    def traceable_model(self, spec: ModelSpec, live: Any) -> TraceableModel:
        """Load the program, by the rules of safety that hold for every load."""
        with load_errors(spec):
            program = self.load(spec, Placement())
        return TraceableModel(program.target, program)

    def load(self, spec: ModelSpec, placement: Placement) -> ModuleModel:
        """Load the program; moving it to a device changes the program itself."""
        with file_of(spec) as path:
            program = read_program(path, spec.trust)
        check_dtype(spec, program, placement.dtype)
        if placement.device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, placement.device)
        module = _as_module(program)
        freeze(module)
        return ProgramModel(spec, module, placement.device)

    def open_to_split(self, spec: ModelSpec, live: Any) -> torch.export.ExportedProgram:
        """Read the program, which is whole or nothing."""
        with file_of(spec) as path:
            program: torch.export.ExportedProgram = read_program(path, spec.trust)
        return program

    def read_tensors(
        self, spec: ModelSpec, names: TensorNames, parts: Parts
    ) -> Tensors:
        """Read records of the archive."""
        every = {n: name for name, tied in names.items() for n in (*tied, name)}
        with file_of(spec) as path:
            found = tensors_in(path, every)
        return {every[name]: tensor for name, tensor in found.items()}


def _as_module(program: Any) -> torch.nn.Module:
    # Guards are source text in the file; sizes are checked without them.
    module: torch.nn.Module = program.module(check_guards=False)
    return module


def read_program(path: str, trust: bool) -> Any:
    """Return a ``*.pt2`` program; without trust only where loading runs no code."""
    if not trust:
        _vet(path)
    with one_program:
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
    dtypes = {t.dtype for t in tensors if isinstance(t, torch.Tensor)}
    floating = {d for d in dtypes if d.is_floating_point}
    if dtype is not None and floating - {dtype}:
        has = ", ".join(sorted(str(d).removeprefix("torch.") for d in floating))
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
