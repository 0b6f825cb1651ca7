"""sentence-transformers models opened to be split: their transformer, then the rest.

The library loads all weights to build a pipeline; this one is built from the config
files alone, for the pipelines whose first module does nothing but call a transformer.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dask_infer.model.runtime.import_library import import_library
from dask_infer.model.runtime.parameters_on_meta import parameters_on_meta
from dask_infer.model.runtime.safetensors_files import read_json
from dask_infer.model.split_refusals import CannotSplit
from dask_infer.spec import ModelSpec

#: What may follow the transformer; each maps features to features.
_REST = ("Pooling", "Normalize", "Dense", "LayerNorm", "Dropout")

#: Settings of the transformer that do not change what it computes of tokens.
_HARMLESS = {"max_seq_length", "do_lower_case"}

#: What the library assumes, and newer versions write down.
_STANDARD = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
}


class Pipeline(nn.Module):
    """Token ids in, one embedding a row out."""

    def __init__(self, transformer: nn.Module, rest: list[nn.Module]) -> None:
        super().__init__()
        self.transformer = transformer
        self.rest = nn.ModuleList(rest)
        self._accepted = frozenset(inspect.signature(transformer.forward).parameters)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the embeddings of a batch of tokens."""
        features: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
        }
        if token_type_ids is not None:
            features["token_type_ids"] = token_type_ids
        taken = {k: v for k, v in features.items() if k in self._accepted}
        output = self.transformer(**taken, return_dict=True)
        features["token_embeddings"] = output["last_hidden_state"]
        for module in self.rest:
            features = module(features)
        embedding: torch.Tensor = features["sentence_embedding"]
        return embedding


def build_pipeline(spec: ModelSpec) -> Pipeline:
    """Build the pipeline; the transformer's weights are not read.

    Raises
    ------
    CannotSplit
        If it does more than the modules that are known here.
    """
    first, *rest = _entries(spec)
    _check(spec, [first, *rest])
    transformer = build_transformer(spec)
    classes = import_library("sentence_transformers.models", what=spec.name)
    modules = []
    for entry in rest:
        kind = getattr(classes, entry["type"].rpartition(".")[2])
        place = {"subfolder": entry["path"], "local_files_only": True}
        modules.append(kind.load(str(spec.path), **place))
    return Pipeline(transformer, modules)


def _entries(spec: ModelSpec) -> list[dict[str, str]]:
    """Return what ``modules.json`` lists."""
    listed: list[dict[str, str]] = read_json(Path(str(spec.path)) / "modules.json")
    return listed


def pipeline_parts(spec: ModelSpec) -> list[tuple[ModelSpec, str]]:
    """Return each module as a model of its own, and the prefix of its tensors."""
    folder, parts = Path(str(spec.path)), []
    for place, entry in enumerate(_entries(spec)):
        prefix = f"rest.{place - 1}." if place else "transformer."
        parts.append((replace(spec, path=str(folder / entry["path"])), prefix))
    return parts


def build_transformer(spec: ModelSpec) -> nn.Module:
    """Build the transformer without its weights, as the library loads it: no head."""
    transformers = import_library("transformers", what=spec.name)
    config = transformers.AutoConfig.from_pretrained(
        pipeline_parts(spec)[0][0].path, local_files_only=True, trust_remote_code=False
    )
    if getattr(config, "is_encoder_decoder", False):
        raise CannotSplit(spec.name, "its transformer has an encoder and a decoder")
    if hasattr(config, "use_cache"):
        config.use_cache = False
    with parameters_on_meta():
        return transformers.AutoModel.from_config(config)  # type: ignore[no-any-return]


def _check(spec: ModelSpec, listed: list[dict[str, str]]) -> None:
    first, *rest = (entry["type"] for entry in listed)
    known = ["Transformer", *_REST]
    for place, kind in enumerate((first, *rest)):
        library, _, name = kind.rpartition(".")
        wanted = known[:1] if place == 0 else known[1:]
        if name not in wanted or not library.startswith("sentence_transformers"):
            raise CannotSplit(spec.name, f"its module {kind} cannot be split")
    for part, _ in pipeline_parts(spec)[1:]:
        file = Path(str(part.path)) / "config.json"
        if file.is_file() and read_json(file).get("include_prompt") is False:
            raise CannotSplit(spec.name, "its pooling leaves out the prompt")
    folder = Path(str(pipeline_parts(spec)[0][0].path))
    file = folder / "sentence_bert_config.json"
    settings = read_json(file) if file.is_file() else {}
    for key, value in settings.items():
        if key == "modality_config":
            text = {"method": "forward", "method_output_name": "last_hidden_state"}
            standard = value.get("text") == text
        else:
            standard = key in _HARMLESS or _STANDARD.get(key) == value
        if not standard:
            raise CannotSplit(spec.name, f"its transformer has the setting {key}")
