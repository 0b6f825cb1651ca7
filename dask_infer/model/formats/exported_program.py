"""Programs of ``torch.export``, ``*.pt2``: run without the code that they come from."""

from __future__ import annotations

import inspect
import io
import re
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.formats.checkpoints.archive_vetting import Refused, vet_archive
from dask_infer.model.formats.checkpoints.pt2_tensors import tensors_in
from dask_infer.model.formats.checkpoints.safetensors_checkpoint import (
    Parts,
    TensorNames,
    Tensors,
)
from dask_infer.model.formats.format import Format, Recognised, load_errors
from dask_infer.model.formats.torchscript import (
    check_zip,
    file_of,
    one_program,
    stored_program,
)
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.runtime.import_library import import_library
from dask_infer.model.runtime.loaded_model import ModuleModel
from dask_infer.model.runtime.place_module import Placement, freeze
from dask_infer.spec.model_spec import ModelSpec

#: How torch says that it does not know a model's output class: its module.
_UNREGISTERED = re.compile(r"Deserializing (transformers\.[\w.]+)\.\w+ in pytree")


class ExportedProgramFormat(Format):
    """A program with its weights; without trust only what runs no code is read."""

    kind = "exported"
    pattern = "*.pt2"
    suffixes = (".pt2",)

    def recognise(self, given: Any, method: str | None) -> Recognised | None:
        """Return a program of this process, written to the content store at once."""
        if not isinstance(given, torch.export.ExportedProgram):
            return None
        buffer = io.BytesIO()
        torch.export.save(given, buffer)
        data = buffer.getvalue()
        key = content_key((self.kind, data))
        return stored_program(self.kind, given, ".pt2", data, key)

    def check(self, path: Path, trust: bool) -> None:
        """Refuse what is no archive."""
        check_zip(path)

    def traceable_module(self, spec: ModelSpec, live: Any) -> torch.nn.Module:
        """Load the program, by the rules of safety that hold for every load."""
        with load_errors(spec):
            module: torch.nn.Module = self.load(spec, Placement()).target
        return module

    def load(self, spec: ModelSpec, placement: Placement) -> ModuleModel:
        """Load the program; moving it to a device changes the program itself."""
        with file_of(spec) as path:
            program = read_program(path, spec.trust)
        check_dtype(spec, program, placement.dtype)
        if placement.device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, placement.device)
        module = _as_module(spec.name, program)
        freeze(module)  # it cannot be trained, so there is no ``eval()``
        return ModuleModel(spec, module, placement.device)

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


def _as_module(name: str, program: Any) -> torch.nn.Module:
    """Return a module that takes arguments by name or by position, as one likes."""
    # Guards are source text in the file; sizes are checked without them.
    module = program.module(check_guards=False)
    names = list(inspect.signature(module.forward).parameters)
    positional, keywords = module._in_spec.children()
    first = names[: positional.num_children]
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    shapes = [getattr(node.meta.get("val"), "shape", ()) for node in inputs]

    def bind(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names) or given.keys() != {*first, *keywords.context}:
            return None  # the program's own error says what it expected
        args = tuple(given[name] for name in first)
        kwargs = {name: given[name] for name in keywords.context}
        for shape, leaf in zip(shapes, tree_leaves((args, kwargs)), strict=False):
            rows = shape[0] if shape else None
            if isinstance(rows, int) and leaf.shape[:1] != (rows,):
                raise InputError(
                    f"{name} was exported for batches of exactly {rows} rows; export "
                    'it again with a dynamic dimension 0: dynamic_shapes={"x": {0: '
                    'torch.export.Dim("rows")}}'
                )
        return args, kwargs

    module.register_forward_pre_hook(bind, prepend=True, with_kwargs=True)
    module.traced_as_it_is = True  # copies have none of the hooks, which check inputs
    return module  # type: ignore[no-any-return]


def read_program(path: str, trust: bool) -> Any:
    """Return a ``*.pt2`` program; without trust only where loading runs no code."""
    if not trust:
        try:
            vet_archive(path)
        except Refused as error:
            raise ModelLoadError(
                f"{path} could run code when loaded: {error}; if you trust it pass "
                "ModelSource.from_path(path, trust=True)"
            ) from error
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
