"""Directories of Hugging Face models.

Never remote code, never the network, never pickled weights.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.checkpoints.huggingface_names import read_converted
from dask_infer.model.formats.checkpoints.safetensors_checkpoint import (
    Parts,
    TensorNames,
    Tensors,
)
from dask_infer.model.formats.format import Format, some
from dask_infer.model.runtime.footprint import mapped_share
from dask_infer.model.runtime.import_library import import_library, one_at_a_time
from dask_infer.model.runtime.loaded_model import ModuleModel
from dask_infer.model.runtime.parameters_on_meta import parameters_on_meta
from dask_infer.model.runtime.place_module import (
    Placement,
    convert,
    needs_conversion,
    place,
    shared,
)
from dask_infer.model.runtime.safetensors_files import (
    read_json,
    safetensors_files,
    safetensors_header,
)
from dask_infer.spec.model_spec import ModelSpec

#: Files of a model directory that say what it computes.
_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")

#: Weights that only a pickle loader reads.
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")

#: Any of them is a tokenizer.
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


class ModelDirectory(Format):
    """What all directories have in common: json files beside safetensors weights."""

    extra = "huggingface"

    def parts(self, path: Path) -> list[Path]:
        """Return the directories that may hold weights and a config each.

        Raises
        ------
        ModelLoadError
            If one of them needs code of its own.
        """
        return [path]

    def check(self, path: Path, trust: bool) -> None:
        """Refuse code that comes with a model, and weights that are pickles."""
        parts = self.parts(path)
        for part in parts:
            _check_config(part)
        if not any([_check_weights(part) for part in parts]):
            raise ModelLoadError(
                f"{path} holds no *.safetensors weights; save them there"
            )

    def files(self, path: Path) -> list[Path]:
        """Return everything that says what the model computes."""
        found = []
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [Path(folder, n) for n in sorted(names) if n.endswith(_SUFFIXES)]
        return found

    def nbytes(self, path: Path) -> int:
        """Return the bytes of the weights."""
        files = (file for file in self.files(path) if file.suffix == ".safetensors")
        return sum(file.stat().st_size for file in files)

    def weight_files(self, spec: ModelSpec) -> list[Path]:
        """Return the weights of the directory and of those in it."""
        return sorted(Path(str(spec.path)).rglob("*.safetensors"))


class HuggingFaceFormat(ModelDirectory):
    """The architecture that ``config.json`` names, from transformers itself."""

    kind = "huggingface"
    pattern = "config.json (Hugging Face)"
    libraries = ("transformers", "tokenizers")

    def is_at(self, path: Path) -> bool:
        """Whether a directory has a config."""
        return (path / "config.json").is_file()

    def brings_tokenizer(self, spec: ModelSpec) -> bool:
        """Whether a tokenizer was saved with the model."""
        return any(Path(str(spec.path), name).exists() for name in _TOKENIZERS)

    def load(self, spec: ModelSpec, placement: Placement) -> ModuleModel:
        """Load the architecture with its weights."""
        module = mapped(spec, placement, lambda dtype: _build(spec, dtype))
        return place(spec, module, placement.device)

    def open_to_split(self, spec: ModelSpec, live: Any) -> torch.nn.Module:
        """Build the architecture without its weights."""
        with parameters_on_meta():
            return build_architecture(spec)

    def read_tensors(
        self, spec: ModelSpec, names: TensorNames, parts: Parts
    ) -> Tensors:
        """Read tensors of the checkpoint, renamed and packed as the library does."""
        files = _checkpoint(Path(str(spec.path)))
        return read_converted(files, names, lambda: build_architecture(spec), parts)


def _check_config(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        return
    content = read_json(config)
    if isinstance(content, dict) and content.get("auto_map"):
        code = ", ".join(sorted(map(str, content["auto_map"].values())))
        raise ModelLoadError(
            f"{path} needs code of its own (auto_map in config.json: {code}), which is "
            "never run from a directory; build the model yourself, if you trust that "
            "code, and pass the module or ModelSource.from_factory(build)"
        )


def _check_weights(path: Path) -> bool:
    """Whether a directory has safetensors; refuse what only pickle would read."""
    files = sorted(path.glob("*.safetensors"))
    for index in path.glob("*.safetensors.index.json"):
        safetensors_files(index)
    for file in files:
        safetensors_header(file)
    pickled = sorted(file.name for name in _PICKLED for file in path.glob(name))
    if pickled and not files:
        raise ModelLoadError(
            f"{path} has its weights in {pickled[0]} only, which can run code when it "
            "is loaded; convert them: AutoModel.from_pretrained(old)"
            ".save_pretrained(new, safe_serialization=True)"
        )
    return bool(files)


def mapped(
    spec: ModelSpec,
    placement: Placement,
    build: Callable[[torch.dtype | None], torch.nn.Module],
) -> torch.nn.Module:
    """Build the module; tensors that would not be mapped go through the store."""
    if not any(Path(str(spec.path)).rglob("*.safetensors")):
        raise ModelLoadError(
            f"{spec.path} holds no safetensors weights; write them with "
            "model.save_pretrained(directory)"
        )
    if placement.device.type != "cpu":
        return build(placement.dtype)
    module, dtype = build(None), placement.dtype
    if dtype is not None and needs_conversion(module, dtype):
        return shared(spec, str(dtype), lambda: convert(build(dtype), dtype))
    if mapped_share(module) < 0.5:
        return shared(spec, "as stored", lambda: build(None))
    return module


def _build(spec: ModelSpec, dtype: torch.dtype | None) -> torch.nn.Module:
    with without_progress(spec):
        architecture, config = _architecture(spec)
        module, report = architecture.from_pretrained(
            spec.path,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name below
        )
    _refuse_gaps(spec, report)
    return module  # type: ignore[no-any-return]


def build_architecture(spec: ModelSpec) -> torch.nn.Module:
    """Build the architecture that ``config.json`` names, without its weights."""
    architecture, config = _architecture(spec)
    build = getattr(architecture, "_from_config", None) or architecture.from_config
    return build(config)  # type: ignore[no-any-return]


def _architecture(spec: ModelSpec) -> tuple[Any, Any]:
    """Return the class that ``config.json`` names, and the config."""
    transformers = import_library("transformers", what=spec.name)
    try:
        config = transformers.AutoConfig.from_pretrained(
            spec.path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        cause = str(error).strip().splitlines()
        raise ModelLoadError(
            f"transformers {transformers.__version__} cannot read "
            f"{spec.path}/config.json: {cause[0] if cause else type(error).__name__}; "
            "save the model again with save_pretrained(), install a version that knows "
            "it, or pass ModelSource.from_factory(build)"
        ) from error
    names = list(getattr(config, "architectures", None) or ())
    if not names:
        return transformers.AutoModel, config
    found = getattr(transformers, names[0], None)
    if found is None:
        raise ModelLoadError(
            f"{spec.path}: architecture {names[0]} is not part of transformers "
            f"{transformers.__version__}, and code that comes with a model is never "
            "run; install a version that has it or pass ModelSource.from_factory(build)"
        )
    return found, config


def _checkpoint(directory: Path) -> list[Path]:
    """Return the files that the library reads, where there are others beside them."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (directory / name).is_file():
            return safetensors_files(directory / name)
    return sorted(directory.glob("*.safetensors"))


def _refuse_gaps(spec: ModelSpec, report: dict[str, Any]) -> None:
    """Weights that the checkpoint lacks would be random, and so would predictions."""
    if missing := [str(name) for name in report.get("missing_keys") or ()]:
        raise ModelLoadError(
            f"{spec.path} lacks weights of its architecture: {some(missing)}; name the "
            'architecture that was saved under "architectures" in config.json'
        )
    if others := [_misfit(*each) for each in report.get("mismatched_keys") or ()]:
        raise ModelLoadError(
            f"{spec.path} holds weights of other shapes than its config.json says: "
            f"{some(others)}; put the architecture and the sizes there that were saved"
        )


def _misfit(name: str, stored: Iterable[int], wanted: Iterable[int]) -> str:
    return f"{name} is {tuple(stored)}, not {tuple(wanted)}"


@contextlib.contextmanager
def without_progress(spec: ModelSpec) -> Iterator[None]:
    """One thread builds, without progress bars and warnings on the worker's stderr."""
    log = import_library("transformers.utils.logging", what=spec.name)
    with one_at_a_time:
        verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity_error()
        log.disable_progress_bar()
        try:
            yield
        finally:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
