"""sentence-transformers: directories with ``modules.json``, and objects of theirs.

The classes of objects hold much that no prediction needs (a card, callbacks, caches of
devices), so only the layers travel, in the order in which the library calls them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.format import FileCall, Recognised
from dask_infer.model.formats.huggingface import (
    ModelDirectory,
    mapped,
    without_progress,
)
from dask_infer.model.formats.torch_module import TorchModuleFormat, unwrap
from dask_infer.model.runtime.footprint import parse_dtype
from dask_infer.model.runtime.import_library import import_library
from dask_infer.model.runtime.loaded_model import ModuleModel
from dask_infer.model.runtime.place_module import Placement, place
from dask_infer.model.runtime.safetensors_files import read_json
from dask_infer.model.runtime.tokenizers import PromptTokenizer
from dask_infer.model.shapes.trace_errors import cannot_trace
from dask_infer.model.shapes.traced_outputs import Traced
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
        if not isinstance(given, nn.Module):
            return None
        model, compile = unwrap(given)
        found = TorchModuleFormat().recognise(_layers_of(model), method)
        if found is not None:
            found.spec = replace(found.spec, name=type(model).__name__, compile=compile)
            found.tokenizer = _tokenizer(model)
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

    def declared_outputs(self, spec: ModelSpec, call: FileCall) -> Traced:
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
        return Traced(embeddings, *call.counts, str(wanted).removeprefix("torch."))

    def load(self, spec: ModelSpec, placement: Placement) -> ModuleModel:
        """Load the pipeline with the library itself."""
        self.parts(Path(str(spec.path)))
        module = mapped(spec, placement, lambda dtype: _build(spec, dtype))
        return place(spec, module, placement.device)

    def open_to_split(self, spec: ModelSpec, live: Any) -> nn.Module:
        """Load the pipeline, its weights mapped: the library builds none without."""
        module: nn.Module = self.load(spec, Placement()).target
        return module


def _build(spec: ModelSpec, dtype: torch.dtype | None) -> torch.nn.Module:
    library = import_library("sentence_transformers", what=spec.name)
    with without_progress(spec):
        module = library.SentenceTransformer(
            spec.path,
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
    a pooling its word embeddings times its modes. None where a module of another kind
    is in between.
    """
    width: int | None = None
    for name, config in _modules(folder):
        if name == "Pooling":
            width = _pooled_width(config)
        elif name == "Dense":
            output = config.get("module_output_name") or "sentence_embedding"
            own = output == "sentence_embedding"
            width = config.get("out_features") if own else None
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


def _stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype that the transformer was stored in."""
    for _, config in _modules(folder):
        name = config.get("dtype", config.get("torch_dtype"))
        if isinstance(found := getattr(torch, str(name), None), torch.dtype):
            return found
    return torch.float32


def _modules(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the class of each module, and its config."""
    for module in read_json(folder / "modules.json"):
        config = folder / module.get("path", "") / "config.json"
        name = str(module["type"]).rpartition(".")[2]
        yield name, dict(read_json(config)) if config.is_file() else {}


class _Layers(nn.Module):
    """What an object of the library runs, as a function of tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        # Apart: as an item of a list the transformer would be one block of a split.
        self.first, *rest = model.children()
        self.rest = nn.ModuleList(rest)
        #: What the layers read beside tokens.
        self.settings: dict[str, Any] = {}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **others: torch.Tensor,
    ) -> torch.Tensor:
        """Return what the library returns for a batch by default."""
        # Named one by one: torch exports no call of ``**tokens`` alone.
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask}
        tokens |= {"token_type_ids": token_type_ids, **others}
        features = {n: tensor for n, tensor in tokens.items() if tensor is not None}
        features |= self.settings
        for layer in (self.first, *self.rest):
            features = layer(features)
        return self.read(features)

    def read(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the output of the last layer."""
        raise NotImplementedError


class Embeddings(_Layers):
    """What ``SentenceTransformer.encode`` returns by default: one embedding a row."""

    def __init__(self, model: Any, prompt: str) -> None:
        super().__init__(model)
        tokens = model.preprocess([""], prompt=prompt) if prompt else {}
        if (length := tokens.get("prompt_length")) is not None:
            self.settings = {"prompt_length": length}  # a pooling may leave it out
        self.width = model.truncate_dim

    def read(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the embeddings, as short as the model was asked for."""
        return features["sentence_embedding"][..., : self.width]


class Scores(_Layers):
    """What ``CrossEncoder.predict`` returns by default: a score a pair or a label."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.activation = model.activation_fn
        self.single = model.num_labels == 1

    def read(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the scores, activated."""
        scores = features["scores"]
        if scores.is_floating_point() and scores.dtype.itemsize < 4:
            scores = scores.float()
        if self.activation is not None:
            scores = self.activation(scores)
        return scores.squeeze(-1) if self.single and scores.ndim > 1 else scores


def _layers_of(model: Any) -> _Layers | None:
    """Return the layers of an object, which is not changed; None of another kind."""
    library = sys.modules.get("sentence_transformers")
    if isinstance(model, getattr(library, "CrossEncoder", ())):
        return Scores(model)
    if isinstance(model, getattr(library, "SentenceTransformer", ())):
        return Embeddings(model, _prompt(model))
    return None


def _prompt(model: Any) -> str:
    """Return what the model puts before each text unless it is asked otherwise."""
    return (getattr(model, "prompts", None) or {}).get(model.default_prompt_name) or ""


def _tokenizer(model: Any) -> Any:
    """Return a tokenizer that prepends the model's prompt."""
    tokenizer, prompt = copy.copy(model.tokenizer), _prompt(model)
    longest = model.max_seq_length
    if longest:
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    return PromptTokenizer(tokenizer, prompt) if prompt else tokenizer
