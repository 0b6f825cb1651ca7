"""Blocks that take equally long, known without running them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split import profile
from dask_infer.model.split.block_costs import block_mark
from dask_infer.model.split.export.layer_operator import fingerprint
from tests.model.split.models import FLOATS, TOKENS, Layer, Masked, split_module


def marks(chain):
    layers = {path: fingerprint(layer) for path, layer in chain.layers().items()}
    return [block_mark(chain, block, layers) for block in range(len(chain.blocks))]


def first_of(chain):
    """For each block, the first one that is like it."""
    found = marks(chain)
    return [found.index(mark) for mark in found]


def test_equal_layers_are_alike_whatever_their_names():
    layers = [Layer(), Layer(), nn.Linear(8, 8), Layer(), nn.Linear(8, 8)]
    _, chain = split_module(nn.Sequential(*layers), FLOATS)
    assert first_of(chain) == [0, 0, 2, 0, 2]


def test_what_a_layer_keeps_beside_its_tensors_makes_a_difference():
    class Repeats(nn.Linear):
        def __init__(self, times):
            super().__init__(8, 8)
            self.times = times

        def forward(self, x):
            for _ in range(self.times):
                x = super().forward(x)
            return x

    _, chain = split_module(nn.Sequential(*map(Repeats, (1, 5, 1))), FLOATS)
    assert first_of(chain) == [0, 1, 0]


def test_sizes_make_a_difference():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(4, 8))
    _, chain = split_module(module, FLOATS)
    assert first_of(chain) == [0, 1, 2]


def test_what_only_passes_through_makes_no_difference():
    class Scaled(Layer):
        def forward(self, x, scale):
            return super().forward(x * scale)

    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Scaled() for _ in range(4))

        def forward(self, x):
            scale = x.sum(1, keepdim=True)
            for layer in self.layers:
                x = layer(x, scale)
            return x

    _, chain = split_module(Scales(), FLOATS)
    assert len(chain.cut_names(1)) > len(chain.cut_names(4))
    assert first_of(chain)[1:] == [1, 1, 1]
    costs = profile(chain, 0, 4, 4)
    assert len({cost.seconds for cost in costs[1:]}) == 1
    assert costs[1].carry_bytes > costs[3].carry_bytes


def test_unknown_sizes_are_like_nothing_else():
    class Drops(nn.Linear):
        def forward(self, x):
            return super().forward(x)[x.sum(1) > -torch.inf]

    _, chain = split_module(nn.Sequential(Drops(8, 8), Drops(8, 8)), FLOATS)
    assert first_of(chain) == [0, 1]


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_number_of_a_layer_makes_no_difference(family):
    transformers = pytest.importorskip("transformers")
    if family == "bert":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        config = transformers.BertConfig(num_hidden_layers=4, vocab_size=50, **sizes)
        model = transformers.BertModel(config)
    else:
        config = transformers.GPT2Config(n_embd=16, n_layer=4, n_head=2, vocab_size=50)
        model = transformers.GPT2Model(config)
    _, chain = split_module(model.eval(), TOKENS, attention_mask=TOKENS)
    names = [block.name for block in chain.blocks]
    layers = [n for n, name in enumerate(names) if name.endswith((".1", ".2"))]
    assert len(layers) == 2
    assert len({first_of(chain)[n] for n in layers}) == 1


def test_only_the_first_of_its_kind_is_run(monkeypatch):
    _, chain = split_module(nn.Sequential(*(Layer() for _ in range(4))), FLOATS)
    built = []
    stage = type(chain).stage
    monkeypatch.setattr(
        type(chain), "stage", lambda *a, **k: built.append(a[1]) or stage(*a, **k)
    )
    costs = profile(chain, 0, 4, 2)
    assert built == [0]
    assert len(costs) == 4
    assert len({cost.seconds for cost in costs}) == 1


def test_blocks_after_skipped_ones_are_run_where_sizes_are_unknown():
    class Drops(nn.Linear):
        def forward(self, x):
            return super().forward(x)[x.sum(1) > -torch.inf]

    layers = [nn.Linear(8, 8), nn.Linear(8, 8), Drops(8, 8), nn.Linear(8, 3)]
    _, chain = split_module(nn.Sequential(*layers), FLOATS)
    costs = profile(chain, 0, 4, 2)
    assert costs[-1].carry_bytes == 2 * 3 * 4


def test_marks_of_a_masked_model_differ_between_its_parts():
    _, chain = split_module(Masked(), Example("int64", (None,)), attention_mask=TOKENS)
    assert len(set(marks(chain))) > 1
