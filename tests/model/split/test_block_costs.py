"""What blocks cost, and what a stage table says of them."""

from __future__ import annotations

import torch
from torch import nn

from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split import profile
from tests.model.split.models import FLOATS, TOKENS, Layer, Masked, Tied, split_module


def test_profile_needs_no_weights():
    spec, chain = split_module(nn.Sequential(Layer(), Layer(), Layer()), FLOATS)
    del spec
    costs = profile(chain, 1, 3, 16)
    assert [cost.name for cost in costs] == ["1", "2"]
    assert all(cost.seconds > 0 for cost in costs)
    assert [cost.nbytes for cost in costs] == [b.nbytes for b in chain.blocks[1:]]
    assert [cost.carry_bytes for cost in costs] == [16 * 8 * 4, 16 * 8 * 4]


def test_profile_of_texts_is_at_a_number_of_tokens():
    _, chain = split_module(Masked(), TOKENS, attention_mask=TOKENS)
    few, many = (profile(chain, 1, 2, 4, tokens=tokens)[0] for tokens in (8, 16))
    assert (few.carry_bytes, many.carry_bytes) == (4 * 8 * 33, 4 * 16 * 33)


def test_profile_leaves_the_modules_without_memory():
    _, chain = split_module(nn.Sequential(Layer(), Layer()), FLOATS)
    modules = chain.layers()
    profile(chain, 0, 2, 4)
    assert all(p.is_meta for module in modules.values() for p in module.parameters())


def test_profile_runs_where_sizes_are_unknown():
    class Drops(nn.Linear):
        def forward(self, x):
            return super().forward(x)[x.sum(1) > -torch.inf]

    _, chain = split_module(nn.Sequential(Drops(8, 8), Drops(8, 8)), FLOATS)
    assert [cost.name for cost in profile(chain, 1, 2, 4)] == ["1"]


def test_blocks_and_repr_show_sizes():
    _, chain = split_module(Tied(), TOKENS)
    first, *_, last = chain.blocks
    assert (first.name, first.parameters, first.nbytes) == ("embed", 160, 640)
    assert first.cut_bytes_per_row == 128 * 8 * 4
    assert last.nbytes == 640 and last.cut_bytes_per_row == 0
    assert chain.nbytes == sum(block.nbytes for block in chain.blocks) - 640
    assert repr(chain) == "<Chain Tied 5 blocks 1.7 KiB>"


def test_bytes_that_cross_follow_the_dtype():
    module = nn.Sequential(nn.Linear(8, 100), nn.Linear(100, 8))
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        _, chain = split_module(module, Example("floating", (8,)), dtype=dtype)
        assert chain.blocks[0].cut_bytes_per_row == 100 * width
