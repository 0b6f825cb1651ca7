"""Models whose code around the layers cannot be followed: PP-1 to PP-7."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dask_infer.errors import InputError
from dask_infer.model.split import CannotSplit, profile
from tests.model.split.models import (
    FLOATS,
    TOKENS,
    assert_exact,
    run,
    same,
    split_module,
    whole,
)


class Layer(nn.Module):
    """One layer, which hands on more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, x: Any, shift: float = 0.0) -> Any:
        return {"x": x + self.dense(x).relu() + shift}


class Chooses(nn.Module):
    """Chooses by values before, between and after its layers."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        if x.sum() > 0:
            x = -x
        shift = float(np.tanh(x.shape[0]))
        for layer in self.layers:
            x = layer(x, shift=shift)["x"]
            x = x * 2 if x.mean().item() < 0 else x + 1
        x = self.norm(x)
        return self.head(x if x[0, 0] > 0 else -x)


def test_code_around_the_layers_that_looks_at_values():  # PP-1, PP-7
    spec, chain = split_module(Chooses(), FLOATS)
    assert chain.tier == "masked"
    assert [b.name for b in chain.blocks] == [f"layers.{n}" for n in range(4)]
    for rows in (1, 2, 5, 13):
        for sign in (1.0, -1.0):
            assert_exact(spec, chain, sign * torch.randn(rows, 8).abs())


def test_two_and_three_stages():
    spec, chain = split_module(Chooses(), FLOATS)
    x = torch.randn(7, 8)
    for cuts in ((2,), (1, 3), (1, 2, 3)):
        same(run(spec, chain, cuts, (x,), {}), whole(spec, (x,), {}))


def test_a_stage_has_its_layers_and_what_comes_before_them():
    _, chain = split_module(Chooses(), FLOATS)
    first, *_, last = ({*block.tensors} for block in chain.blocks)
    assert {"first.weight", "layers.0.dense.weight"} <= first
    assert not {"head.weight", "norm.weight", "layers.1.dense.weight"} & first
    assert {"first.weight", "head.weight", "layers.3.dense.weight"} <= last
    assert "layers.2.dense.weight" not in last


def test_cuts_are_where_they_are_named():  # PP-4
    spec, chain = split_module(Chooses(), FLOATS, cuts=("layers.2", "layers.1"))
    assert [block.name for block in chain.blocks] == ["inputs", "layers.1", "layers.2"]
    assert_exact(spec, chain, torch.randn(3, 8))


def test_layers_called_again_and_tied_weights():  # PP-3
    class Again(Chooses):
        def __init__(self):
            super().__init__(2)
            self.embed, self.out = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids):
            x = self.embed(ids)
            for layer in (*self.layers, self.layers[0]):
                x = layer(x)["x"]
                x = x if x.sum() > 0 else -x
            return self.out(x)

    spec, chain = split_module(Again(), TOKENS)
    assert chain.tier == "masked"
    names = [block.name for block in chain.blocks]
    assert names == ["layers.0", "layers.1", "layers.0 again"]
    for shape in ((1, 1), (3, 4), (2, 9)):  # PP-8
        assert_exact(spec, chain, torch.randint(9, shape))


def test_encoder_and_decoder():  # PP-2
    class Both(Chooses):
        def __init__(self):
            super().__init__(2)
            self.others = nn.ModuleList(Layer() for _ in range(2))

        def forward(self, x, memory=None):
            for layer in self.layers:
                memory = layer(memory)["x"]
                memory = memory if memory.sum() > 0 else -memory
            for layer in self.others:
                x = layer(x + memory)["x"]
            return {"x": self.head(x), "memory": memory.mean(), "rows": len(x)}

    spec, chain = split_module(Both(), FLOATS, memory=FLOATS)
    assert chain.tier == "masked" and len(chain.blocks) == 4
    assert_exact(spec, chain, torch.randn(3, 8), memory=torch.randn(3, 8))


def test_hooks_run_once():
    module = Chooses()
    module.layers[1].register_forward_hook(lambda part, given, made: {"x": -made["x"]})
    module.register_forward_hook(lambda part, given, made: (made, made - 1))
    spec, chain = split_module(module, FLOATS)
    assert chain.tier == "masked"
    assert_exact(spec, chain, torch.randn(3, 8))


def test_costs_are_measured_by_running_the_blocks_before():
    _, chain = split_module(Chooses(), FLOATS)
    costs = profile(chain, 0, 4, 3)
    # What crosses is the input, and the last layer's output.
    assert [cost.carry_bytes for cost in costs] == [192, 192, 192, 36]


def test_dtype_is_that_of_the_stages():  # PP-11
    spec, chain = split_module(Chooses(), FLOATS, dtype="bfloat16")
    assert chain.tier == "masked" and chain.floating is torch.bfloat16
    assert_exact(spec, chain, torch.randn(3, 8).bfloat16(), dtype="bfloat16")


def test_rows_that_go_another_way_are_refused():
    class Exits(Chooses):
        def forward(self, x):
            for layer in self.layers:
                x = layer(x)["x"]
                if x.max() > 1000:
                    break
            return self.head(x)

    spec, chain = split_module(Exits(), FLOATS)
    assert chain.tier == "masked"
    assert_exact(spec, chain, torch.randn(3, 8))
    with pytest.raises(InputError, match=r'calls "head" out of.*parallel="data"'):
        run(spec, chain, (2,), (torch.full((1, 8), 2000.0),), {})


class Gathers(Chooses):
    """The output needs what each layer returned."""

    def forward(self, x: Any) -> Any:
        total = 0.0
        for layer in self.layers:
            x = layer(x)["x"]
            total += x if x.sum() > 0 else x.sum()
        return self.head(x + total)


class Alone(Chooses):
    """No layers in a list."""

    def __init__(self) -> None:
        super().__init__(1)


@pytest.mark.parametrize("kind", [Gathers, Alone])
def test_what_masking_would_change_is_refused(kind):  # PP-16
    with pytest.raises(CannotSplit, match=r"at .*test_masking\.py|layers"):
        split_module(kind(), FLOATS)


def test_a_cut_before_what_is_no_layer_is_refused():  # PP-4
    with pytest.raises(CannotSplit):
        split_module(Chooses(), FLOATS, cuts=("norm",))
