"""Models whose layers torch cannot export, cut between them: PP-1 to PP-7."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import Any

import pytest
import torch
from torch import nn

from dask_infer.model.split import CannotSplit, profile, split
from dask_infer.spec import ModelSpec
from tests.model.split.models import (
    FLOATS,
    TOKENS,
    Layer,
    assert_exact,
    run,
    same,
    split_module,
    whole,
)


class Looks(nn.Module):
    """Chooses by values, and asks for numbers, inside."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, x: Any, factor: Any = 1.0) -> Any:
        y = self.dense(x)
        if y.sum() > 0:
            y = torch.from_numpy(y.detach().cpu().numpy() * 2.0)
        return x + y * (1.0 + y.abs().max().item()) * factor


class Model(nn.Module):
    """Such layers; what is around them is for those that derive from it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Looks() for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Around(Model):
    """Skips, sizes, keywords, weights and constants between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))
        self.register_buffer("shift", torch.randn(8), persistent=False)
        self.plain = torch.randn(8)

    def forward(self, x: Any, bias: Any = None, factor: float = 2.0) -> Any:
        rows, width = x.shape
        start = x
        x = self.layers[0](x, factor=factor) * self.scale + self.shift
        x = self.layers[1](x + start if bias is None else x + bias)
        x = self.layers[0](x).view(rows, width // 2, 2) + torch.ones(2)
        x = self.layers[2](x.flatten(1)) + self.plain / math.sqrt(width)
        x = x + torch.arange(rows, device=x.device)[:, None] * torch.ones(rows, 8)
        x += start
        return {"x": self.head(x), "rows": rows, "scale": x.shape[0] * 2}


@pytest.mark.parametrize("kind", [Model, Around])
def test_layers_that_look_at_values(kind):  # PP-1, PP-4
    spec, chain = split_module(kind(), FLOATS)
    assert len(chain.blocks) >= 3
    for rows in (1, 2, 5, 13):  # PP-7
        for sign in (1.0, -1.0):
            assert_exact(spec, chain, sign * torch.randn(rows, 8).abs())


def test_no_graph_is_printed(capsys):
    class Warns(Model):
        def forward(self, x):
            print("one of the user's own lines", file=sys.stderr)
            return super().forward(x)

    split_module(Warns(), FLOATS)
    printed = capsys.readouterr().err
    assert "one of the user's own lines" in printed and "def forward" not in printed


def test_two_and_three_stages():
    spec, chain = split_module(Model(), FLOATS)
    x = torch.randn(7, 8)
    for cuts in ((2,), (1, 2), (1, 3)):
        same(run(spec, chain, cuts, (x,), {}), whole(spec, (x,), {}))


def test_inputs_by_keyword_and_call_kwargs():  # PP-1
    module = Around()
    spec, chain = split_module(module, FLOATS, bias=FLOATS, call_kwargs={"factor": 3.0})
    x, bias = torch.randn(3, 8), torch.randn(3, 8)
    expected = module.eval()(x, bias=bias, factor=3.0)
    same(run(spec, chain, (1, 2), (x,), {"bias": bias}), expected)


def test_call_kwargs_that_the_signature_does_not_name():
    class Passes(Around):
        def forward(self, x: Any, **kwargs: Any) -> Any:
            return super().forward(x, **kwargs)

    module = Passes()
    spec, chain = split_module(module, FLOATS, call_kwargs={"factor": 3.0})
    x = torch.randn(3, 8)
    same(run(spec, chain, (1, 2), (x,), {}), module.eval()(x, factor=3.0))


def test_cuts_are_where_they_are_named():  # PP-4
    spec, chain = split_module(Around(), FLOATS, cuts=("layers.2", "layers.1"))
    assert [block.name for block in chain.blocks] == ["inputs", "layers.1", "layers.2"]
    assert_exact(spec, chain, torch.randn(3, 8))


def test_tied_and_twice_called_layers_are_in_both_blocks():  # PP-3
    class Tied(Model):
        def __init__(self):
            super().__init__()
            self.embed, self.again = nn.Embedding(9, 8), self.layers[0]
            self.out = nn.Linear(8, 9, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids):
            x = self.layers[1](self.layers[0](self.embed(ids)))
            return self.out(self.again(x))

    spec, chain = split_module(Tied(), TOKENS)
    last = [name for block in chain.blocks[2:] for name in block.tensors]
    assert {"embed.weight", "layers.0.dense.weight"} <= set(last)
    for shape in ((1, 1), (3, 4), (2, 9)):  # PP-8
        assert_exact(spec, chain, torch.randint(9, shape))


def test_hooks_of_layers_and_of_the_model_are_kept():
    module = Model()
    module.layers[1].register_forward_hook(lambda part, given, made: made * 3)
    module.register_forward_hook(lambda part, given, made: (made, made - 1))
    spec, chain = split_module(module, FLOATS)
    assert_exact(spec, chain, torch.randn(3, 8))


def test_outputs_of_a_layer_are_taken_apart():  # PP-6
    class Pair(nn.Linear):
        def forward(self, x):
            return {"x": super().forward(x), "n": x.sum().item()}

    module = Model()
    module.head = Pair(8, 4)
    spec, chain = split_module(module, FLOATS)
    assert_exact(spec, chain, torch.randn(3, 8))


def test_training_code_is_that_of_eval():
    class Trains(Model):
        def forward(self, x):
            return super().forward(x * 2 if self.training else x)

    module = Trains().train()
    spec, chain = split_module(module, FLOATS)
    assert module.training
    assert_exact(spec, chain, torch.randn(3, 8))


def test_changes_in_place_through_views():  # PP-2
    class Changes(Model):
        def forward(self, x):
            y = self.layers[0](x)
            left = y[:, :4]
            z = self.layers[1](y)
            left += 1.0
            z[:, 0] = 3.0
            return self.head(self.layers[2](y + z) + left.sum())

    spec, chain = split_module(Changes(), FLOATS)
    assert_exact(spec, chain, torch.randn(3, 8))


def test_nested_lists_fall_back_to_the_layers_around():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(Layer() for _ in range(2))

        def forward(self, x):
            for part in self.parts:
                x = part(x) if x.sum() > 0 else -part(x)
            return x

    module = Model()
    module.layers = nn.ModuleList(Outer() for _ in range(3))
    spec, chain = split_module(module, FLOATS)
    assert [b.name for b in chain.blocks] == [
        "layers.0",
        "layers.1",
        "layers.2",
        "head",
    ]
    assert_exact(spec, chain, torch.randn(3, 8))


def test_costs_of_layers_that_look_at_values():
    _, chain = split_module(Model(), FLOATS)
    assert [block.cut_bytes_per_row for block in chain.blocks] == [32, 32, 32, 0]
    costs = profile(chain, 0, 4, 3)
    assert [cost.carry_bytes for cost in costs] == [96, 96, 96, 48]


def test_dtype_is_that_of_the_stages():  # PP-11
    class Branching(Layer):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    class Halves(Model):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Branching() for _ in range(2))

    spec, chain = split_module(Halves(), FLOATS, dtype="bfloat16")
    assert chain.floating is torch.bfloat16
    assert_exact(spec, chain, torch.randn(3, 8).bfloat16(), dtype="bfloat16")


# Refused


class Counter(Model):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return super().forward(x)


class Caches(Model):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def forward(self, x: Any) -> Any:
        x = self.layers[0](x)
        self.seen.append(x)
        return super().forward(x)


class Tells(Model):
    """A layer that leaves a note for the next one, which no tensor shows."""

    def __init__(self) -> None:
        super().__init__()
        note: dict[str, Any] = {}

        def write(part: Any, given: Any) -> None:
            note["sum"] = given[0].sum()

        def read(part: Any, given: Any, made: Any) -> Any:
            return made + note["sum"]

        self.layers[0].register_forward_pre_hook(write)
        self.layers[2].register_forward_hook(read)


class Top(Model):
    def forward(self, x: Any) -> Any:
        x = self.layers[0](x)
        return super().forward(x) if x.mean() > 0 else self.head(x)


class Suppresses(Model):
    def forward(self, x: Any) -> Any:
        try:
            scale = 1.0 if self.layers[0](x).mean() > 5.0 else 2.0
        except Exception:
            scale = 2.0
        return super().forward(x) * scale


class Loops(Model):
    def forward(self, x: Any) -> Any:
        x = self.layers[0](x)
        return self.head(torch.stack([self.layers[1](x[n]) for n in range(len(x))]))


class Counts(Model):
    def forward(self, x: Any) -> Any:
        x = self.layers[0](x)
        return self.head(x.view(len(x), -1))


class Turns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, x: Any) -> Any:
        y = self.dense(x)
        return y if y.sum() > 0 else -y


class Casts(Model):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Turns() for _ in range(3))

    def forward(self, x: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class Draws(Model):
    def forward(self, x: Any) -> Any:
        return super().forward(x) + torch.rand(4)


class Writes(Model):
    def forward(self, x: Any) -> Any:
        return super().forward(x.mul_(2.0))


class Fills(Model):
    def forward(self, x: Any) -> Any:
        made = torch.zeros(8)
        made[:] = self.layers[0](x).mean(0)
        return super().forward(x + made)


class Checks(Model):
    def forward(self, x: Any) -> Any:
        return super().forward(x * 2 if isinstance(x, torch.Tensor) else x)


@pytest.mark.parametrize("kind", [Fills, Checks, Draws, Writes])
def test_code_around_layers_is_exported(kind):
    spec, chain = split_module(kind(), FLOATS)
    if kind is Draws:  # numbers of its own each time
        x = torch.randn(3, 8)
        assert run(spec, chain, (1,), (x,), {}).shape == (3, 4)
        return
    for rows in (1, 5):
        x = torch.randn(rows, 8)
        expected = whole(spec, (x.clone(),), {})
        same(run(spec, chain, (1, 2), (x.clone(),), {}), expected)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Counter, 'it changes its "calls"'),
        (Caches, 'it changes its "seen"'),
        (Casts, "mixed precision"),
        (Suppresses, r"test_glue.py:\d+: .*mean\(\) > 5.0"),
        (Tells, "sum"),
        (Top, r'test_glue.py:\d+: "return super.*x.mean'),
        (Loops, r"range\(len\(x\)\)"),
        (Counts, r"len\(x\) do \(x.shape\[0\] does not\) \(at .*view\(len\(x\)"),
    ],
)
def test_what_cannot_be_exact_is_refused(kind, why):
    with pytest.raises(CannotSplit, match=why) as refusal:
        split_module(kind(), FLOATS)
    message = str(refusal.value)
    assert "torch cannot follow it" in message and 'use parallel="data"' in message


def test_layers_that_hand_on_tuples():  # PP-2
    class Pairs(Looks):
        def forward(self, pair):
            return super().forward(pair[0]), pair[1]

    class Model2(Model):
        def forward(self, x):
            pair = (x, x)
            for layer in self.layers:
                pair = layer(pair)
            return pair[0]

    module = Model2()
    module.layers = nn.ModuleList(Pairs() for _ in range(3))
    spec, chain = split_module(module, FLOATS)
    assert len(chain.blocks) == 3
    assert_exact(spec, chain, torch.randn(3, 8))


def test_a_loop_over_tokens_between_layers_is_refused_with_its_reason():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(9, 8), Layer()

        def forward(self, ids):
            state = x = self.embed(ids)
            for place in range(ids.shape[1]):
                state = state + self.layer(x[:, place : place + 1])
            return state

    with pytest.raises(CannotSplit, match=r"one number of tokens.*range\(ids\.shape"):
        split_module(Steps(), TOKENS)


def test_mixed_precision_ends_with_the_split():
    class Region(Casts):
        def forward(self, x):
            return Model.forward(self, x) if x.sum() > 0 else super().forward(x)

    for kind in (Casts, Region):
        with contextlib.suppress(CannotSplit):
            split_module(kind(), FLOATS)
        assert not torch.is_autocast_enabled("cpu")


def test_the_users_module_is_untouched():  # PP-5
    module = Counter()
    module.calls = torch.zeros(())  # changed in place by +=
    with pytest.raises(CannotSplit, match='changes its "calls"'):
        split_module(module, FLOATS)
    assert module.calls == 0 and type(module) is Counter
    assert type(module.layers[0]) is Looks and module(torch.ones(2, 8)).requires_grad


def test_synthetic_weights_take_no_memory():
    class Huge(Looks):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(2**20, 2**20, device="meta")  # 4 TiB

        def forward(self, x):
            row = self.table.weight[x.argmax().item() + 2**19]
            return super().forward(x + row[:8])

    module = Model()
    module.layers = nn.ModuleList(Huge() for _ in range(2))
    chain = split(ModelSpec("0", "huge", "module"), module, [FLOATS], {})
    assert chain.nbytes > 2**43
