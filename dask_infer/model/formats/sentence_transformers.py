"""Objects of sentence-transformers: modules of token ids, and tokenizers of their own.

Their classes hold much that no prediction needs (a card, callbacks, caches of devices),
so only the layers travel, in the order in which the library calls them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn


class Wrapped(NamedTuple):
    """An object that was taken apart."""

    module: nn.Module
    tokenizer: Any


class Embeddings(nn.Module):
    """What ``SentenceTransformer.encode`` returns by default."""

    def __init__(self, model: Any, prompt_length: int | None) -> None:
        super().__init__()
        self.layers = nn.Sequential(*model.children())
        self.prompt_length = prompt_length
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


class Prompted:
    """A tokenizer of texts that begin with a prompt."""

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # not unpickled yet
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __call__(self, texts: Sequence[str], *pairs: Any, **options: Any) -> Any:
        """Tokenise the texts; a prompt stands before the first of a pair."""
        return self.tokenizer([self.prompt + text for text in texts], *pairs, **options)


def taken_apart(model: Any) -> Wrapped | None:
    """Return the layers and the tokenizer of an object; None where it is another kind.

    The caller's object is not changed.
    """
    library = sys.modules.get("sentence_transformers")
    if _is_a(model, library, "CrossEncoder"):
        return Wrapped(Scores(model), _tokenizer(model, _prompt(model)))
    if _is_a(model, library, "SentenceTransformer"):
        prompt, length = _prompt(model), None
        if prompt:
            length = model.preprocess([""], prompt=prompt).get("prompt_length")
        return Wrapped(Embeddings(model, length), _tokenizer(model, prompt))
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
    return Prompted(tokenizer, prompt) if prompt else tokenizer
