"""Directories of Hugging Face and sentence-transformers models.

Never remote code, never the network, never pickled weights. Both libraries keep their
registries and settings in module-level state, so one thread at a time imports them
or builds with them.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.torch_module import (
    Placement,
    freeze,
    in_dtype,
    needs_conversion,
    place,
    shared,
)
from dask_infer.model.runtime.footprint import mapped_share, safetensors_files
from dask_infer.model.runtime.loaded_model import ModuleModel, keywords_of
from dask_infer.spec.model_spec import ModelSpec

_one_at_a_time = threading.RLock()

EXTRA = 'pip install "dask-infer[huggingface]"'


def import_library(name: str, *, what: str) -> Any:
    """Import transformers or sentence_transformers, one thread at a time.

    Raises
    ------
    ModelLoadError
        If it is not installed; names the extra.
    """
    with _one_at_a_time:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ModelLoadError(
                f"{what} needs {error.name}, which this process cannot import; "
                f"{EXTRA} on the client and the workers"
            ) from error


def load_huggingface(spec: ModelSpec, placement: Placement) -> ModuleModel:
    """Load the architecture that ``config.json`` names with its safetensors weights."""
    module = _in_place(spec, placement, lambda dtype: _build_transformer(spec, dtype))
    return place(spec, module, placement.device)


def load_sentence_transformers(spec: ModelSpec, placement: Placement) -> ModuleModel:
    """Load a pipeline of ``modules.json``, pooling and normalisation included."""
    module = _in_place(spec, placement, lambda dtype: _build_sentence(spec, dtype))
    freeze(module)
    module.eval()
    return SentenceModel(spec, module.to(placement.device), placement.device)


def _in_place(
    spec: ModelSpec,
    placement: Placement,
    build: Callable[[torch.dtype | None], torch.nn.Module],
) -> torch.nn.Module:
    """Build the module; tensors that would not be mapped go through the store."""
    if placement.device.type != "cpu":
        return build(placement.dtype)
    module = build(None)
    if needs_conversion(module, placement.dtype):
        return in_dtype(spec, placement, lambda: build(placement.dtype))
    if mapped_share(module) < 0.5:
        return shared(spec, "as stored", lambda: build(None))
    return module


def _build_transformer(spec: ModelSpec, dtype: torch.dtype | None) -> torch.nn.Module:
    directory = _directory(spec)
    transformers = import_library("transformers", what=spec.name)
    with _quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        module, report = _architecture(transformers, spec, config).from_pretrained(
            directory,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype or "auto",
            output_loading_info=True,
        )
    _refuse_gaps(spec, report)
    return module  # type: ignore[no-any-return]


def safetensors_of(spec: ModelSpec) -> list[Path]:
    """Files of weights that a directory's model is loaded from."""
    directory = Path(_directory(spec))
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (directory / name).is_file():
            return safetensors_files(directory / name)
    return sorted(directory.glob("*.safetensors"))


def _directory(spec: ModelSpec) -> str:
    directory = Path(str(spec.path))
    if not any(directory.rglob("*.safetensors")):
        raise ModelLoadError(
            f"{directory} holds no safetensors weights; write them with "
            "model.save_pretrained(directory)"
        )
    return str(directory)


def _architecture(transformers: Any, spec: ModelSpec, config: Any) -> Any:
    names = list(config.architectures or ())
    if not names:
        return transformers.AutoModel
    found = getattr(transformers, names[0], None)
    if found is None:
        raise ModelLoadError(
            f"{spec.path}: architecture {names[0]} is not part of transformers "
            f"{transformers.__version__}, and code that comes with a model is never "
            "run; install a version that has it or pass ModelSource.from_factory(build)"
        )
    return found


def _refuse_gaps(spec: ModelSpec, report: dict[str, Any]) -> None:
    """Weights that the checkpoint lacks would be random, and so would predictions."""
    for key, cause in (
        ("missing_keys", "lacks weights of its architecture"),
        ("mismatched_keys", "holds weights of other shapes than its architecture"),
    ):
        names = sorted(str(name) for name in report.get(key) or ())
        if names:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise ModelLoadError(
                f"{spec.path} {cause}: {some}; name the architecture that was saved "
                'under "architectures" in config.json'
            )


def _build_sentence(spec: ModelSpec, dtype: torch.dtype | None) -> torch.nn.Module:
    directory = _directory(spec)
    _refuse_foreign_modules(Path(directory))
    library = import_library("sentence_transformers", what=spec.name)
    transformers = import_library("transformers", what=spec.name)
    with _quiet(transformers):
        module = library.SentenceTransformer(
            directory,
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": dtype or "auto"},
        )
    return module if dtype is None else module.to(dtype)  # type: ignore[no-any-return]


def _refuse_foreign_modules(directory: Path) -> None:
    for entry in json.loads((directory / "modules.json").read_text()):
        if not str(entry["type"]).startswith("sentence_transformers."):
            raise ModelLoadError(
                f"{directory}: modules.json names {entry['type']}, which is no part of "
                "sentence_transformers; pass ModelSource.from_factory(build)"
            )


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """One thread builds, without progress bars and warnings on the worker's stderr."""
    log = transformers.utils.logging
    with _one_at_a_time:
        verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity_error()
        log.disable_progress_bar()
        try:
            yield
        finally:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


class SentenceModel(ModuleModel):
    """Token ids in, one embedding a row out."""

    def __init__(
        self, spec: ModelSpec, module: torch.nn.Module, device: torch.device
    ) -> None:
        super().__init__(spec, module, device)
        self.accepts = _accepted_tokens(module)

    def function(self, method: str | None) -> Callable[..., Any]:
        """Return the pipeline as a function of the tokenizer's tensors."""
        if method is not None:
            return super().function(method)
        return lambda **tokens: self.target(tokens)["sentence_embedding"]


def _accepted_tokens(module: Any) -> frozenset[str] | None:
    inner = getattr(module[0], "auto_model", None)
    return None if inner is None else keywords_of(inner.forward)
