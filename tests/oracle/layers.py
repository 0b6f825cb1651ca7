"""Models of several layers, which stages and shards divide, and what one row gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from tests.oracle.entries import Arg, Entry, Out, batch_of_one, first, module_alone
from tests.oracle.frames import WORDS
from tests.oracle.modules import seeded
from tests.oracle.texts import TOKENIZERS, ids_of


class TwoOutputs(nn.Module):
    """One argument goes past the layers; outputs of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 5), nn.Linear(5, 3)])

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> dict[str, Any]:
        hidden = w
        states = []
        for layer in self.layers:
            hidden = layer(hidden).tanh()
            states.append(hidden)
        return {
            "logits": hidden * x[:, None],
            "label": hidden.argmax(-1),
            "states": states,
            "loss": None,
            "positive": hidden[:, 0] > 0,
        }


class Refusing(nn.Module):
    """A layer that fails where a value is below -3."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # No fake one, as shapes are found with.
        if type(x) is torch.Tensor and bool((x < -3).any()):
            raise ValueError("below -3")
        return self.layer(x)


class Layer(nn.Module):
    """A layer of a transformer: attention of two heads, and a network."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(hidden).unflatten(-1, (2, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) + bias
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        hidden = hidden + self.out(mixed)
        return hidden + self.down(nn.functional.gelu(self.up(self.norm(hidden))))


class Encoder(nn.Module):
    """A small transformer of tokens, or with a tied head what it would say next."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.table = nn.Embedding(10, 6)
        self.layers = nn.ModuleList([Layer(6, 9), Layer(6, 9)])
        self.head = nn.Linear(6, 10 if kind == "tied" else 3)
        if kind == "tied":
            self.head.weight = self.table.weight

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        mask = attention_mask.to(torch.float32)
        bias = (1 - mask[:, None, None, :]) * -1e4
        hidden = self.table(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, bias)
        if self.kind == "tokens":
            return self.head(hidden)
        pooled = (hidden * mask[..., None]).sum(1)
        if self.kind == "both":
            return {"hidden": hidden, "pooled": pooled, "first": pooled[:, 0]}
        return self.head(pooled)


def bert() -> nn.Module:
    import transformers

    config = transformers.BertConfig(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    return transformers.BertModel(config).eval()


def gpt() -> nn.Module:
    import transformers

    config = transformers.GPT2Config(
        vocab_size=12,
        n_embd=8,
        n_layer=3,
        n_head=2,
        n_positions=32,
    )
    return transformers.GPT2Model(config).eval()


def perceptron() -> nn.Module:
    """Widths that no number of shards divides."""
    return nn.Sequential(
        nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 1)
    )


def normed() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(3, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 6), nn.Linear(6, 3)
    )
    for buffer in (model[1].running_mean, model[1].running_var):
        buffer.add_(0.5)
    return model.eval()


def refusing() -> nn.Module:
    """Fails in the middle: the first layer passes on what it gets."""
    same = nn.Linear(2, 2)
    nn.init.eye_(same.weight)
    nn.init.zeros_(same.bias)
    return nn.Sequential(same, Refusing(), nn.Tanh(), nn.Linear(4, 1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4)),
        nn.Conv1d(1, 3, 2),
        nn.ReLU(),
        nn.Conv1d(3, 5, 2),
        nn.Flatten(),
        nn.Linear(10, 2),
    )


def embedded() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(10, 7), nn.Flatten(), nn.Linear(14, 5), nn.Linear(5, 2)
    )


F32, LIST, TOKENS = Out("float32"), Out("float32", 1), Out("float32", 2)
V2 = Arg("vector", ("float", "int", "bool"), 2, "x", lists=True)
V3 = Arg("vector", ("float", "int"), 3, "input", lists=True)
TEXT = Arg("text", ("text",), keyword="input_ids")
IDS = Arg("ids", ("ints",), keyword="input_ids")
PLAIN = ("bare", "tuple", "none")


def softmax(output: Any, frame: Any) -> Any:
    """A `postprocess` that computes."""
    return output.softmax(-1)


def _entry(
    name: str, build: Any, args: Any, outputs: Any, blocks: int, **more: Any
) -> Entry:
    make = more.pop("make", None) or seeded(build)
    args = args if isinstance(args, tuple) else (args,)
    outputs = {"": outputs} if isinstance(outputs, Out) else outputs
    pick = more.pop("pick", None)
    alone = more.pop("alone", None) or module_alone(make, pick)
    return Entry(name, make, args, outputs, alone, blocks=blocks, **more)


def _two(found: Any) -> Any:
    return first({name: found[name] for name in ("logits", "label", "positive")})


def _softmax(x: Any) -> Any:
    with torch.inference_mode():
        return NORMED(*batch_of_one(x)).softmax(-1)[0].tolist()


def _encoder(
    kind: str, outputs: Any, arg: Arg, tokenizer: str | None = None, **more: Any
) -> Entry:
    make, blocks = ENCODERS[kind], more.pop("blocks", 4)
    more.setdefault("weight", 1)  # elsewhere they are drawn more often
    more.setdefault("forms", ("bare", "series", "none") if tokenizer else PLAIN)

    def alone(value: Any) -> Any:
        ids = torch.tensor([ids_of(value) if tokenizer else list(value)]).long()
        with torch.inference_mode():
            found = make()(input_ids=ids, attention_mask=torch.ones_like(ids))
        if isinstance(outputs, Out):
            return first(found)
        return {name: found[name][0].tolist() for name in outputs}

    if tokenizer:
        more["call"] = {"tokenizer": TOKENIZERS[tokenizer]()}
    name = f"{kind} layers of {tokenizer or 'ids'}"
    return _entry(name, None, arg, outputs, blocks, make=make, alone=alone, **more)


NORMED = seeded(normed)()
ENCODERS = {
    kind: seeded(lambda kind=kind: Encoder(kind))
    for kind in ("pooled", "tokens", "both", "tied")
}
ENCODERS |= {"bert": seeded(bert), "gpt": seeded(gpt)}
#: transformers' models take no text without tokens.
WORDED = replace(TEXT, values=st.sampled_from([w for w in WORDS if w]))
BOTH = {"hidden": TOKENS, "pooled": LIST, "first": F32}

ENTRIES = (
    _entry("layers", perceptron, V2, F32, 4, forms=PLAIN),
    _entry("layers of three", normed, V3, LIST, 4, forms=PLAIN),
    _entry("layers, then softmax", normed, V3, LIST, 4, forms=PLAIN,
           alone=_softmax, call={"postprocess": softmax}),
    _entry("layers that refuse", refusing, V2, F32, 3, forms=PLAIN),
    _entry("layers in bfloat16", perceptron, V2, F32, 4, forms=PLAIN,
           call={"dtype": "bfloat16"}, tolerance=3e-2),
    _entry("layers in float64", perceptron, V2, Out("float64"), 4, forms=PLAIN,
           call={"dtype": "float64"}, tolerance=1e-4),
    _entry("layers of lists", convolutions, Arg("list", ("list",), 4, "input"),
           LIST, 3, forms=PLAIN),
    _entry("layers of integers", embedded,
           Arg("vector", ("int",), 2, "input", integer=True), LIST, 3, forms=PLAIN),
    _entry("layers of two arguments", TwoOutputs,
           (Arg("scalar", ("float",), keyword="x"),
            Arg("vector", ("float", "int"), 2, "w", lists=True)),
           {"logits": LIST, "label": Out("int64"), "positive": Out("bool")}, 3,
           pick=_two),
    _encoder("pooled", LIST, TEXT, "hf"),
    _encoder("pooled", LIST, TEXT, "padded left"),
    _encoder("pooled", LIST, IDS),
    _encoder("tokens", TOKENS, TEXT, "hf left"),
    _encoder("tokens", TOKENS, IDS),
    _encoder("both", BOTH, TEXT, "lists", blocks=3),
    _encoder("both", BOTH, IDS, blocks=3),
    _encoder("tied", LIST, TEXT, "padded"),
    _encoder("bert", {"last_hidden_state": TOKENS, "pooler_output": LIST}, WORDED,
             "hf", tolerance=1e-4),
    _encoder("gpt", {"last_hidden_state": TOKENS}, WORDED, "hf", blocks=6,
             tolerance=1e-4),
)  # fmt: skip
