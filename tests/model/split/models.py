"""Models that are hard to cut, and how the tests split and run them."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from dask_infer.model.runtime.load_model import load
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split import Chain, load_stage, split
from dask_infer.model.store.blob_store import PendingBlob, Store
from dask_infer.spec import ModelSpec

FLOATS = Example("floating", (8,))
TOKENS = Example("int64", (None,))


def spec_of(module: nn.Module, store: Store | None = None) -> ModelSpec:
    blob = PendingBlob(module).write(store)
    return ModelSpec(blob.key, type(module).__name__, "module", blob=blob)


def split_module(
    module: nn.Module, *args: Example, cuts: Any = None, **kwargs: Any
) -> tuple[ModelSpec, Chain]:
    """Split a module of the client; the chain has been through pickle."""
    spec = spec_of(module)
    settings = {k: kwargs.pop(k) for k in ("dtype", "call_kwargs") if k in kwargs}
    chain = split(spec, module, list(args), kwargs, cuts=cuts, **settings)
    return spec, pickle.loads(pickle.dumps(chain))


def run(
    spec: ModelSpec, chain: Chain, cuts: tuple[int, ...], args: Any, kwargs: Any
) -> Any:
    """Run a chain cut before these blocks, each stage with its own tensors alone."""
    carry = chain.bind(args, kwargs)
    bounds = (0, *cuts, len(chain.blocks))
    for start, stop in pairwise(bounds):
        carry = load_stage(spec, chain, start, stop).call((carry,), {})
        assert all(is_flat(value) for value in carry.values())
    return chain.output(carry)


def is_flat(value: Any) -> bool:
    return value is None or isinstance(value, (torch.Tensor, int, float, str))


def whole(spec: ModelSpec, args: Any, kwargs: Any, dtype: str | None = None) -> Any:
    """What the undivided model returns."""
    return load(spec, dtype=dtype).call(tuple(args), dict(kwargs))


def assert_exact(
    spec: ModelSpec, chain: Chain, *args: Any, dtype: str | None = None, **kwargs: Any
) -> None:
    """Hold every cut in two, and the finest one, against the undivided model."""
    expected = whole(spec, args, kwargs, dtype)
    blocks = len(chain.blocks)
    finest = tuple(range(1, blocks))
    for cuts in {(), finest, *((cut,) for cut in finest)}:
        same(run(spec, chain, cuts, args, kwargs), expected)


def same(given: Any, expected: Any) -> None:
    assert type(given) is type(expected)
    torch.testing.assert_close(fields(given), fields(expected))


def fields(output: Any) -> Any:
    if isinstance(output, torch.Tensor) or not hasattr(output, "__dict__"):
        return output
    named = output if isinstance(output, dict) else vars(output)
    return {key: value for key, value in named.items() if value is not None}


class Layer(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Any) -> Any:
        return x + self.norm(self.dense(x)).relu()


class Raw(nn.Module):
    """Raw parameters, one of them in two layers, and a buffer in two as well."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("shift", torch.randn(8))
        self.register_buffer("scale", torch.randn(8), persistent=False)
        self.plain = torch.randn(8)

    def forward(self, x: Any, factor: float = 2.0) -> Any:
        x = x @ self.weight + self.shift
        x = self.first(x) * factor
        x = x @ self.weight + self.shift * self.scale
        return self.second(x) @ self.weight + self.plain


class Skips(nn.Module):
    """Values that jump over one and two layers, and the input used at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: Any) -> Any:
        a = self.layers[0](x)
        b = self.layers[1](a)
        c = self.layers[2](b + a)
        return self.layers[3](c + a) + x


class InPlace(nn.Module):
    """In-place operations on views and values of an earlier layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        view = y[:, :4]
        z = self.second(y)
        view.add_(1.0)
        z[:, 0] = 3.0
        kept = y * 2
        return self.relu(y) + z + kept + y


class Asks(nn.Module):
    """Code around its layers asks for the sizes of its input."""

    def __init__(self, question):
        super().__init__()
        self.question = question
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x) if self.question(*ids.shape) else layer(x) / 2
        return x


class Tied(nn.Module):
    """An embedding that is the head as well."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Noted(nn.Module):
    """Reads what was noted on weights, in layers and around them."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(NotedLayer(factor + i) for i in range(3))
        self.head = NotedLayer(0.5)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x) * getattr(self.head.dense.weight, "factor", 1.0)


class NotedLayer(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.dense: Any = nn.Linear(8, 8)
        self.dense.weight.factor = factor

    def forward(self, x: Any) -> Any:
        return self.dense(x) * getattr(self.dense.weight, "factor", 1.0)


class Shared(nn.Module):
    """A module under two names, run three times."""

    def __init__(self) -> None:
        super().__init__()
        layer = Layer()
        self.first, self.second, self.other = layer, layer, Layer()

    def forward(self, x: Any) -> Any:
        return self.second(self.other(self.first(self.first(x))))


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Returns(nn.Module):
    """Returns what `kind` says, an output of the first layer included."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Any) -> Any:
        early = x = self.layers[0](x)
        x = self.layers[2](self.layers[1](x))
        return {
            "tuple": (x, early, None, 3),
            "dict": {"x": x, "again": x, "early": early},
            "nested": {"a": [x, (early, x)], "rows": x.shape[0]},
            "named": Pair(x, early),
            "input": (x, early),
        }[self.kind]


class Masked(nn.Module):
    """Attention over padded texts: encoder layers of torch, called with keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)
        )

    def forward(self, ids: Any, attention_mask: Any = None, scale: Any = 1.0) -> Any:
        x = self.embed(ids)
        padding = None if attention_mask is None else attention_mask == 0
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return x.mean(1) * scale


class Branches(nn.Module):
    """Looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        if x.sum() > 0:
            x = x + 1
        return self.second(x)


class Counts(nn.Module):
    """Changes its own buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.dense(x)
