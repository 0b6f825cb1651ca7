"""Models of texts and tokens, and tokenizers of every make."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from hypothesis import strategies as st
from torch import nn

from tests.oracle.entries import Arg, Entry, Out, first
from tests.oracle.frames import WORDS
from tests.oracle.modules import seeded

WORD_IDS = {"a": 1, "bb": 2, "ccc": 3, "x": 4, "y": 5, "z": 6}


def ids_of(text: str) -> list[int]:
    return [WORD_IDS[word] for word in text.split()]


def in_lists(texts: list[str]) -> dict[str, Any]:
    """Rows of any length."""
    return {"input_ids": [ids_of(t) for t in texts]}


def padded(texts: list[str]) -> dict[str, Any]:
    """Padded to the longest, with a mask."""
    rows = [ids_of(t) for t in texts]
    width = max(map(len, rows), default=0)
    ids = [row + [0] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return {
        "input_ids": np.array(ids, "int64").reshape(len(rows), width),
        "attention_mask": np.array(mask, "int64").reshape(len(rows), width),
    }


def padded_left(texts: list[str]) -> dict[str, Any]:
    """Padded on the left, as tensors."""
    found = padded(texts)
    return {
        key: torch.from_numpy(np.ascontiguousarray(_to_left(value, texts)))
        for key, value in found.items()
    }


def _to_left(values: Any, texts: list[str]) -> Any:
    rows = [
        np.roll(row, len(row) - len(ids_of(t)))
        for row, t in zip(values, texts, strict=True)
    ]
    return np.array(rows)


def padded_to_six(texts: list[str]) -> dict[str, Any]:
    """Padded to a length of its own."""
    rows = [(ids_of(t) + [0] * 6)[:6] for t in texts]
    mask = [[1] * len(ids_of(t)) + [0] * (6 - len(ids_of(t))) for t in texts]
    return {"input_ids": np.array(rows), "attention_mask": np.array(mask)}


@cache
def hugging_face(side: str, pad: str, names: tuple[str, ...]) -> Any:
    """Return a word-level tokenizer of transformers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"[PAD]": 0, **WORD_IDS, "[SEP]": 7, "[UNK]": 8}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=pad,
        unk_token="[UNK]",
        padding_side=side,
        model_input_names=list(names),
    )


BOTH = ("input_ids", "attention_mask")


class Tokens(nn.Module):
    """Sums, or numbers a token."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3)
        self.kind = kind

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        hidden = self.table(input_ids)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        pooled = (hidden * mask.unsqueeze(-1)).sum(1)
        if self.kind == "pooled":
            return pooled
        if self.kind == "number":
            return pooled[:, 0]
        if self.kind == "tokens":
            return hidden
        if self.kind == "token numbers":
            return hidden[:, :, 0]
        if self.kind == "both":
            return {"pooled": pooled, "hidden": hidden}
        if self.kind == "squeezed":
            return pooled[:, :1].squeeze()
        if self.kind == "has mask":
            return pooled[:, 0] * 0 + (attention_mask is not None)
        return {"logits": pooled}


class LastToken(nn.Module):
    """Reads the last token that is no padding, as decoders' classifiers do."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 2)
        self.config = SimpleConfig(pad)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        real = (input_ids != self.config.pad_token_id).int()
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (places * real).argmax(-1)
        hidden = self.table(input_ids)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]


class SimpleConfig:
    """What transformers' configurations have."""

    def __init__(self, pad: int) -> None:
        self.pad_token_id = pad

    def get_text_config(self, decoder: bool = False) -> Any:
        return self


def llama(classes: bool, pad: int | None = 3) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        pad_token_id=pad,
        bos_token_id=1,
        eos_token_id=None,
        num_labels=3,
    )
    if classes:
        return transformers.LlamaForSequenceClassification(config).eval()
    return transformers.LlamaForCausalLM(config).eval()


def left_padded(frame: pd.DataFrame) -> dict[str, torch.Tensor]:
    """A `preprocess` that makes ids and a mask, padded on the left."""
    return padded_left(list(frame.iloc[:, 0]))


def right_padded(frame: pd.DataFrame) -> dict[str, torch.Tensor]:
    """A `preprocess` that makes ids and a mask, padded on the right."""
    found = padded(list(frame.iloc[:, 0]))
    return {key: torch.from_numpy(value) for key, value in found.items()}


def _alone(make: Any, tokenized: bool, pick: Any = None) -> Any:
    def alone(value: Any) -> Any:
        ids = ids_of(value) if tokenized else list(value)
        rows = torch.tensor([ids], dtype=torch.int64)
        model = make()
        with torch.inference_mode():
            found = model(rows, torch.ones_like(rows))
        return pick(found) if pick else _fields(found)

    return alone


def _fields(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {key: row.tolist() for key, row in ((k, v[0]) for k, v in found.items())}
    return first(found)


TEXT = Arg("text", ("text",), keyword="input_ids")
IDS = Arg("ids", ("ints",), keyword="input_ids")
F32, LIST = Out("float32"), Out("float32", 1)
RAGGED = Out(pd.ArrowDtype(pa.list_(pa.float32())), 1)
MAKES = {
    kind: seeded(lambda kind=kind: Tokens(kind))
    for kind in (
        "pooled", "number", "tokens", "token numbers", "both", "squeezed", "has mask",
        "field",
    )
}  # fmt: skip
TOKENIZERS = {
    "lists": lambda: in_lists,
    "padded": lambda: padded,
    "padded left": lambda: padded_left,
    "hf": lambda: hugging_face("right", "[PAD]", BOTH),
    "hf left": lambda: hugging_face("left", "[PAD]", BOTH),
    "hf sep": lambda: hugging_face("right", "[SEP]", BOTH),
}


def _text(kind: str, outputs: Any, tokenizer: str, **more: Any) -> Entry:
    make = MAKES[kind]
    outputs = {"": outputs} if isinstance(outputs, Out) else outputs
    call = {"tokenizer": TOKENIZERS[tokenizer]()} | more.pop("call", {})
    pick = (lambda o: float(o.reshape(()))) if kind == "squeezed" else None
    alone = _alone(make, True, pick)
    name = more.pop("name", f"{kind} of texts, {tokenizer}")
    settled = {"forms": ("bare", "series", "none"), "weight": 2} | more
    return Entry(name, make, (TEXT,), outputs, alone, call=call, **settled)


def _ids(name: str, make: Any, outputs: Any, **more: Any) -> Entry:
    outputs = {"": outputs} if isinstance(outputs, Out) else outputs
    alone = more.pop("alone", None) or _alone(make, False)
    return Entry(name, make, (IDS,), outputs, alone, **more)


def _masked(names: tuple[str, ...]) -> Entry:
    """A tokenizer that says whether the model is given a mask."""
    given = float("attention_mask" in names)
    return Entry(
        f"has mask, {len(names)} names", MAKES["has mask"], (TEXT,), {"": F32},
        lambda text: given, weight=4, forms=("bare", "series", "none"),
        call={"tokenizer": hugging_face("right", "[PAD]", names)},
    )  # fmt: skip


def _generated(value: Any) -> Any:
    rows = torch.tensor([list(value)])
    make = MODELS["llama"]
    return make().generate(rows, **GREEDY)[0].tolist()


GREEDY = {"max_new_tokens": 3, "do_sample": False, "use_cache": False}
MODELS = {
    "last 0": seeded(lambda: LastToken(0)),
    "last 3": seeded(lambda: LastToken(9)),
    "llama": seeded(lambda: llama(False, None)),
    "llama classes": seeded(lambda: llama(True, 10)),
}


def _preprocessed(name: str, function: Any, kind: str, out: Out) -> Entry:
    # Only a row alone tells whether a declared list is as long as its tokens.
    call = {"preprocess": function, "row_wise": True}
    return Entry(
        name, MAKES[kind], (Arg("text", ("text",), missing=False),), {"": out},
        _alone(MAKES[kind], True), inferred=False, call=call,
        forms=("bare", "none", "series"),
    )  # fmt: skip


def _pairs(tokenizer: str) -> Entry:
    """Two columns of text, which the tokenizer joins."""
    first_arg, second = (Arg("text", ("text",), keyword=name) for name in ("t", "u"))
    alone = _alone(MAKES["pooled"], True)
    return Entry(
        f"pairs of texts, {tokenizer}",
        MAKES["pooled"],
        (first_arg, second),
        {"": LIST},
        lambda one, other: alone(f"{one} {other}"),
        call={"tokenizer": TOKENIZERS[tokenizer]()},
        forms=("tuple",),
    )


@cache
def directory() -> Path:
    """Return a directory as transformers saves a model and its tokenizer."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    folder = tempfile.TemporaryDirectory(prefix="oracle")
    _open.append(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).eval().save_pretrained(folder.name)
    hugging_face("right", "[PAD]", BOTH).save_pretrained(folder.name)
    return Path(folder.name)


_open: list[Any] = []


@cache
def loaded() -> Any:
    import transformers

    return transformers.BertModel.from_pretrained(directory()).eval()


def _of_directory(text: str) -> Any:
    model, ids = loaded(), torch.tensor([ids_of(text)])
    with torch.inference_mode():
        return {"pooler_output": model(ids).pooler_output[0].tolist()}


ENTRIES = (
    *(_text("pooled", LIST, t) for t in TOKENIZERS),
    *(_text("tokens", Out("float32", 2), t) for t in TOKENIZERS),
    _text("number", F32, "padded"),
    _text("token numbers", LIST, "lists"),
    _text("token numbers", LIST, "hf left"),
    _text("squeezed", F32, "hf"),
    _text("field", {"logits": LIST}, "lists"),
    _text("both", {"pooled": LIST, "hidden": Out("float32", 2)}, "hf"),
    _text(
        "pooled", RAGGED, "lists", inferred=False, name="declared list of 3", weight=6
    ),
    _masked(BOTH),
    _masked(BOTH[:1]),
    _ids("pooled of ids", MAKES["pooled"], LIST),
    _ids("tokens of ids", MAKES["tokens"], Out("float32", 2)),
    _ids("last of ids, 0", MODELS["last 0"], LIST),
    _ids("last of ids, 9", MODELS["last 3"], LIST),
    _ids("number of ids, declared", MAKES["number"], F32, inferred=False),
    _ids("last, declared", MODELS["last 3"], RAGGED, inferred=False),
    _preprocessed("left-padded by preprocess", left_padded, "token numbers", RAGGED),
    _preprocessed("right-padded by preprocess", right_padded, "token numbers", RAGGED),
    _preprocessed("pooled by preprocess", left_padded, "number", F32),
    _ids(
        "llama classes",
        MODELS["llama classes"],
        {"logits": RAGGED},
        blocks=2,
        inferred=False,
        weight=2,
        tolerance=1e-4,
        alone=lambda v: {
            "logits": MODELS["llama classes"]()(torch.tensor([list(v)]))
            .logits[0]
            .tolist()
        },
    ),
    _ids(
        "llama generates",
        MODELS["llama"],
        Out(pd.ArrowDtype(pa.list_(pa.int64())), 1),
        inferred=False,
        weight=2,
        alone=_generated,
        call={"method": "generate", "call_kwargs": GREEDY},
    ),
    _pairs("hf"),
    _pairs("hf left"),
    Entry(
        "directory",
        lambda: str(directory()),
        (Arg("text", ("text",), missing=False, values=st.sampled_from(WORDS[:-1])),),
        {"pooler_output": LIST},
        _of_directory,
        call={"output": {"pooler_output": "pooled"}},
        forms=("bare", "series", "none"),
        blocks=3,
        weight=2,
        tolerance=1e-4,
    ),
)
