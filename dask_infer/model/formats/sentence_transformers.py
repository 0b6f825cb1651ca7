"""sentence-transformers: directories with ``modules.json``, and objects of theirs.

The classes of objects hold much that no prediction needs (a card, callbacks, caches of
devices), so only the layers travel, in the order in which the library calls them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.checkpoints.huggingface_names import read_converted
from dask_infer.model.formats.checkpoints.safetensors_checkpoint import (
    Parts,
    TensorNames,
    Tensors,
)
from dask_infer.model.formats.checkpoints.sentence_pipeline import (
    build_pipeline,
    build_transformer,
    pipeline_parts,
)
from dask_infer.model.formats.format import Declared, FileCall, Recognised
from dask_infer.model.formats.huggingface import (
    ModelDirectory,
    directory_of,
    mapped,
    safetensors_of,
    without_progress,
)
from dask_infer.model.formats.torch_module import (
    TorchModuleFormat,
    module_given,
    unwrap,
)
from dask_infer.model.runtime.footprint import parse_dtype
from dask_infer.model.runtime.import_library import import_library
from dask_infer.model.runtime.loaded_model import ModuleModel
from dask_infer.model.runtime.place_module import Placement, place
from dask_infer.model.runtime.safetensors_files import read_json, safetensors_header
from dask_infer.model.runtime.tokenizers import PromptTokenizer
from dask_infer.model.shapes.trace_errors import cannot_trace
from dask_infer.spec.model_spec import ModelSpec

#: Modules that keep the width of an embedding.
_KEEP = ("Transformer", "Normalize", "Dropout", "LayerNorm")


class SentenceTransformersFormat(ModelDirectory):
    """A pipeline of modules, pooling and normalisation included."""

    kind = "sentence-transformers"
    pattern = "modules.json (sentence-transformers)"
    libraries = ("sentence_transformers",)
    declares_outputs = True

    def recognise(self, given: Any, method: str | None) -> Recognised | None:
        """Return the layers of an object as a torch module, with its tokenizer."""
        model, compile = module_given(given), None
        if isinstance(model, nn.Module):
            model, compile = unwrap(model)
        if (parts := _parts_of(model)) is None:
            return None
        found = TorchModuleFormat().recognise(parts.module, method)
        if found is not None:
            found.spec = replace(found.spec, name=type(model).__name__, compile=compile)
            found.tokenizer = parts.tokenizer
        return found

    def is_at(self, path: Path) -> bool:
        """Whether a directory lists modules."""
        return (path / "modules.json").is_file()

    def parts(self, path: Path) -> list[Path]:
        """Return the directory of each module."""
        parts = []
        for module in read_json(path / "modules.json"):
            name = str(module["type"])
            if not name.startswith("sentence_transformers."):
                raise ModelLoadError(
                    f"{path} needs code of its own ({name} in modules.json), which is "
                    "never run from a directory; install that code and pass "
                    "ModelSource.from_factory(build)"
                )
            part = path / str(module.get("path", ""))
            if part.is_dir():
                parts.append(part)
        return parts

    def brings_tokenizer(self, spec: ModelSpec) -> bool:
        """Say yes: it is a module of the pipeline."""
        return True

    def declared_outputs(self, spec: ModelSpec, call: FileCall) -> Declared:
        """Return embeddings of the width and dtype that the config files say."""
        if call.method is not None:
            reason = f"its files do not say what {call.method} returns"
            raise cannot_trace(spec.name, reason)
        folder = Path(str(spec.path))
        wanted = parse_dtype(call.dtype) or _stored_dtype(folder)
        width = embedding_width(folder)
        if width is None:
            reason = "its modules do not say how wide an embedding is"
            raise cannot_trace(spec.name, reason)
        embeddings = torch.empty(call.counts[0], width, dtype=wanted, device="meta")
        return embeddings, str(wanted).removeprefix("torch."), ()

    def load(self, spec: ModelSpec, placement: Placement) -> ModuleModel:
        """Load the pipeline with the library itself."""
        self.parts(Path(str(spec.path)))
        module = mapped(spec, placement, lambda dtype: _build(spec, dtype))
        return place(spec, module, placement.device)

    def open_to_split(self, spec: ModelSpec, live: Any) -> nn.Module:
        """Build the pipeline without the weights of its transformer."""
        return build_pipeline(spec)

    def read_tensors(
        self, spec: ModelSpec, names: TensorNames, parts: Parts
    ) -> Tensors:
        """Read each module's tensors from its own directory."""
        found = {}
        for part, prefix in pipeline_parts(spec):
            own = {
                name.removeprefix(prefix): tuple(t.removeprefix(prefix) for t in tied)
                for name, tied in names.items()
                if name.startswith(prefix)
            }
            if own:
                files = safetensors_of(part)
                mine = {
                    name.removeprefix(prefix): part
                    for name, part in parts.items()
                    if name.startswith(prefix)
                }
                read = read_converted(files, own, lambda: build_transformer(spec), mine)
                found.update({f"{prefix}{n}": tensor for n, tensor in read.items()})
        return found


def _build(spec: ModelSpec, dtype: torch.dtype | None) -> torch.nn.Module:
    directory = directory_of(spec)
    library = import_library("sentence_transformers", what=spec.name)
    transformers = import_library("transformers", what=spec.name)
    with without_progress(transformers):
        module = library.SentenceTransformer(
            directory,
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True, "dtype": dtype or "auto"},
        )
    embeddings = Embeddings(module, _prompt(module))
    return embeddings if dtype is None else embeddings.to(dtype)


def embedding_width(folder: Path) -> int | None:
    """Return the width of a sentence-transformers embedding, from its config files.

    The last module that changes it decides: of a dense layer the output features, of
    a pooling its word embeddings times its modes, of a static embedding the columns of
    its weights. None where a module of another kind is in between.
    """
    width: int | None = None
    for module in read_json(folder / "modules.json"):
        path = folder / module.get("path", "")
        name = module["type"].rsplit(".", 1)[-1]
        config = _json(path / "config.json")
        if name == "Pooling":
            width = _pooled_width(config)
        elif name == "Dense":
            output = config.get("module_output_name") or "sentence_embedding"
            width = (
                config.get("out_features") if output == "sentence_embedding" else None
            )
        elif name == "StaticEmbedding":
            width = _static_width(path / "model.safetensors")
        elif name not in _KEEP:
            return None
    return width


def _pooled_width(config: Mapping[str, Any]) -> int | None:
    word = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [
            key for key in config if key.startswith("pooling_mode_") and config[key]
        ]
    count = 1 if isinstance(modes, str) else len(modes) or 1
    return None if word is None else int(word) * count


def _static_width(weights: Path) -> int | None:
    """Return the columns of the first matrix that a safetensors header lists."""
    tensors = safetensors_header(weights).values() if weights.is_file() else ()
    shapes = (entry["shape"] for entry in tensors)
    return next((int(shape[1]) for shape in shapes if len(shape) == 2), None)


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype that the transformer was stored in."""
    for module in read_json(folder / "modules.json"):
        config = _json(folder / module.get("path", "") / "config.json")
        name = config.get("dtype", config.get("torch_dtype"))
        if isinstance(found := getattr(torch, str(name), None), torch.dtype):
            return found
    return torch.float32


def _json(path: Path) -> dict[str, Any]:
    """Return a file's mapping; an empty one where there is no such file."""
    return dict(read_json(path)) if path.is_file() else {}


class ModelParts(NamedTuple):
    """What an object of the library runs."""

    module: nn.Module
    tokenizer: Any


class Embeddings(nn.Module):
    """What ``SentenceTransformer.encode`` returns by default."""

    def __init__(self, model: Any, prompt: str) -> None:
        super().__init__()
        self.layers = nn.Sequential(*model.children())
        #: Tokens of the prompt, which a pooling may leave out.
        self.prompt_length: int | None = None
        if prompt:
            tokens = model.preprocess([""], prompt=prompt)
            self.prompt_length = tokens.get("prompt_length")
        self.width = model.truncate_dim

    def forward(self, **tokens: torch.Tensor) -> torch.Tensor:
        """Return one embedding a row."""
        features: dict[str, Any] = dict(tokens)
        if self.prompt_length is not None:
            features["prompt_length"] = self.prompt_length
        embeddings: torch.Tensor = self.layers(features)["sentence_embedding"]
        return embeddings[..., : self.width]


class Scores(nn.Module):
    """What ``CrossEncoder.predict`` returns by default."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.layers = nn.Sequential(*model.children())
        self.activation = model.activation_fn
        self.single = model.num_labels == 1

    def forward(self, **tokens: torch.Tensor) -> torch.Tensor:
        """Return one score a pair, or one a label."""
        scores: torch.Tensor = self.layers(dict(tokens))["scores"]
        if scores.is_floating_point() and scores.dtype.itemsize < 4:
            scores = scores.float()
        if self.activation is not None:
            scores = self.activation(scores)
        return scores.squeeze(-1) if self.single and scores.ndim > 1 else scores


def _parts_of(model: Any) -> ModelParts | None:
    """Return the layers and the tokenizer of an object; None where it is another kind.

    The caller's object is not changed.
    """
    library = sys.modules.get("sentence_transformers")
    if _is_a(model, library, "CrossEncoder"):
        return ModelParts(Scores(model), _tokenizer(model, _prompt(model)))
    if _is_a(model, library, "SentenceTransformer"):
        prompt = _prompt(model)
        return ModelParts(Embeddings(model, prompt), _tokenizer(model, prompt))
    return None


def _is_a(model: Any, library: Any, name: str) -> bool:
    return isinstance(model, getattr(library, name, ()))


def _prompt(model: Any) -> str:
    """Return what the model puts before each text unless it is asked otherwise."""
    return (getattr(model, "prompts", None) or {}).get(model.default_prompt_name) or ""


def _tokenizer(model: Any, prompt: str) -> Any:
    tokenizer = copy.copy(model.tokenizer)
    longest = model.max_seq_length
    if longest:
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    return PromptTokenizer(tokenizer, prompt) if prompt else tokenizer
