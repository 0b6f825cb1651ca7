"""Torch modules of the catalogue, and habits of theirs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn


def seeded(build: Any) -> Any:
    """Return a cached factory whose weights are the same in each process."""

    @cache
    def make() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build()

    return make


class Squeezed(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.linear = nn.Linear(k, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).squeeze()


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Negate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ~x


class Same(nn.Module):
    """A view of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class FirstOf(nn.Module):
    """A strided view of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


class Turned(nn.Module):
    """A transposed view: (n, 2, 2) of (n, 4)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(1, (2, 2)).transpose(1, 2)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x).sum(1) if x.dim() > 1 else self.table(x)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x + self.linear(w).squeeze(-1)


class Largest(nn.Module):
    """Which number of a row is the largest."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.argmax(1)


class Weighted(nn.Module):
    """The head of two towers."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 3 * (x + y)


class Answer(nn.Module):
    """Two results in a structure of any kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.linear(x)
        label = logits.argmax(-1)
        if self.kind == "dict":
            return {"logits": logits, "label": label, "loss": None}
        if self.kind == "dataclass":
            return Answered(logits, label)
        if self.kind == "namedtuple":
            return Named(logits, label)
        if self.kind == "hidden":
            return {"logits": logits, "label": label, "states": (logits, logits)}
        return logits, label


@dataclass
class Answered:
    logits: torch.Tensor
    label: torch.Tensor


class Named(NamedTuple):
    logits: torch.Tensor
    label: torch.Tensor


class Buffered(nn.Module):
    """Fills a buffer that it keeps, and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None or self.kept.shape != x.shape:
            self.kept = torch.empty_like(x)
        self.kept.copy_(x).mul_(3)
        return self.kept


class Twice(nn.Module):
    """One tensor under two names."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = x.sum(1)
        return {"raw": y, "score": y}


class Counting(nn.Module):
    """Keeps state that changes no result."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).to(torch.bfloat16)


class Picky(nn.Module):
    """Fails where a value is below -3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < -3).any()):
            raise ValueError("below -3")
        return x.sum(1)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.unsqueeze(1)).mean(-1)


class Typed(nn.Module):
    """Returns another dtype than floats."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.nan_to_num() > 0).sum(1).to(self.dtype)


class Sorted(nn.Module):
    """Returns a struct sequence of torch: values and indices."""

    def forward(self, x: torch.Tensor) -> Any:
        return torch.max(x.nan_to_num(), 1)


class Constant(nn.Module):
    """One value expanded over the rows: no memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([1.5, 2.5, 3.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value.expand(len(x), 3)


class Wrong(nn.Module):
    """Breaks what `meta=` promises."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        if self.kind == "count":
            return x.sum(1).mean().reshape(1)
        if self.kind == "fields":
            return {"other": x.sum(1)}
        return x[:, :2] * 1.0


class Stateless(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1) / 3


class PairScores(nn.Module):
    """Scores of rows against rows, as CLIP has them."""

    def forward(self, x: torch.Tensor) -> Any:
        return {"own": x.sum(1), "pairs": x @ x.T}


def hooked() -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_forward_hook(_add_one)
    return model


def _add_one(module: Any, args: Any, output: Any) -> Any:
    return output + 1


def used() -> nn.Module:
    """Was called before, with gradients."""
    model = Buffered()
    model(torch.ones(3, 2))
    return model


class Detections(nn.Module):
    """A list of a row's boxes and labels, as many as it has."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> Any:
        counts = x.nan_to_num().abs().sum(1).long() % 4
        rows = [row.repeat(n, 1) for row, n in zip(x, counts.tolist(), strict=True)]
        if self.kind == "arrays":
            return [boxes[:, 0] for boxes in rows]
        if self.kind == "one array":
            return [row * 2 for row in x]
        return [{"boxes": boxes, "labels": boxes[:, 0] > 0} for boxes in rows]
