"""Models whose code around the layers cannot be followed: PP-1 to PP-7."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dask_infer.errors import InputError
from dask_infer.model.split import CannotSplit, load_stage, profile
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
    # What crosses is the input, and the output of each layer before.
    assert [cost.carry_bytes for cost in costs] == [192, 288, 384, 36]


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
    """The output needs what each layer returned, changed in place."""

    def forward(self, x: Any) -> Any:
        total = torch.zeros_like(x)
        for layer in self.layers:
            x = layer(x)["x"]
            if x.abs().max() > 3:
                x *= 0.5
            total = total + (x if x.sum() > 0 else -x)
        return self.head(x + total)


def test_code_that_reads_the_outputs_of_all_layers():  # PP-2
    spec, chain = split_module(Gathers(), FLOATS)
    assert chain.tier == "masked"
    for scale in (0.1, 1.0, 10.0, -100.0):
        assert_exact(spec, chain, scale * torch.randn(3, 8))


class Keeps(Chooses):
    """Keeps something once numbers are large."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 100.0

    def forward(self, x: Any) -> Any:
        if x.max().item() > self.largest:
            self.largest = x.max().item()
        return super().forward(x)


class Names(Chooses):
    """Names its output by its numbers."""

    def forward(self, x: Any) -> Any:
        large = x.max() > 100
        return {"large" if large else "small": super().forward(x)}


class Swallows(Chooses):
    """Goes on where a layer fails."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[1] = Fails()

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            try:
                x = layer(x)["x"]
            except ValueError:
                x = x + 1
        return self.head(x if x.sum() > 0 else -x)


class SwallowsTheLast(Swallows):
    """The same, with nothing after its layers that could tell."""

    def __init__(self) -> None:
        super().__init__()
        self.layers[1], self.layers[3] = Layer(), Fails()

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            try:
                x = layer(x)["x"]
            except ValueError:
                x = x + 1
        return {"x": x if x.sum() > 0 else -x}


class Fails(Layer):
    def forward(self, x: Any, shift: float = 0.0) -> Any:
        if x.max() > 100:
            raise ValueError("too large")
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Keeps, r'changes its "largest"'),
        (Names, "another structure"),
        (Swallows, "out of turn|leaves layers out"),
        (SwallowsTheLast, "goes on where a layer fails"),
    ],
)
def test_rows_for_which_a_model_does_something_else_are_refused(kind, why):
    spec, chain = split_module(kind(), FLOATS)
    assert chain.tier == "masked"
    small, large = torch.randn(2, 8), torch.full((1, 8), 2000.0)
    stages = [load_stage(spec, chain, n, n + 1) for n in range(4)]

    def through(x):
        carry = chain.bind((x,), {})
        for stage in stages:
            carry = stage.call(carry)
        return chain.output(carry)

    expected = whole(spec, (small,), {})
    same(through(small), expected)
    with pytest.raises(InputError, match=why):
        through(large)
    same(through(small), expected)  # and nothing is left of it


def test_threads_share_a_stage():
    spec, chain = split_module(Chooses(), FLOATS)
    stage = load_stage(spec, chain, 0, 4)
    rows = [torch.randn(3, 8) for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        carries = pool.map(lambda x: stage.call(chain.bind((x,), {})), rows)
        for x, carry in zip(rows, carries, strict=True):
            same(chain.output(carry), whole(spec, (x,), {}))


class Alone(Chooses):
    """No layers in a list."""

    def __init__(self) -> None:
        super().__init__(1)


def test_without_a_list_of_layers_it_is_refused():  # PP-16
    with pytest.raises(CannotSplit, match=r"at .*test_masking\.py"):
        split_module(Alone(), FLOATS)


def test_a_cut_before_what_is_no_layer_is_refused():  # PP-4
    with pytest.raises(CannotSplit):
        split_module(Chooses(), FLOATS, cuts=("norm",))
