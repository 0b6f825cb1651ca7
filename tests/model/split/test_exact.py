"""Chains against the undivided model: PP-1 to PP-7."""

from __future__ import annotations

import copy
import pickle
import re
from typing import NamedTuple

import pytest
import torch
from torch import nn

from dask_infer.errors import InputError
from dask_infer.model.shapes.propagate import propagate
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.shapes.traced_outputs import leaves_of
from dask_infer.model.split import split
from dask_infer.model.split.export.size_guards import guards_of
from tests.model.split.models import (
    FLOATS,
    TOKENS,
    Asks,
    InPlace,
    Layer,
    Masked,
    Noted,
    Raw,
    Returns,
    Shared,
    Skips,
    Tied,
    assert_exact,
    run,
    same,
    spec_of,
    split_module,
    whole,
)


@pytest.mark.parametrize("kind", [Raw, Skips, InPlace, Shared, Noted])
def test_every_cut_is_exact(kind):  # PP-1, PP-2, PP-3, PP-4
    spec, chain = split_module(kind(), FLOATS)
    assert len(chain.blocks) >= 2
    for rows in (1, 2, 5, 13):  # PP-7
        assert_exact(spec, chain, torch.randn(rows, 8))


@pytest.mark.parametrize("kind", ["tuple", "dict", "nested", "named", "input"])
def test_outputs_keep_their_structure(kind):  # PP-6
    spec, chain = split_module(Returns(kind), FLOATS)
    assert_exact(spec, chain, torch.randn(3, 8))


def layer_with_a_class_of_its_own():
    class Halves(NamedTuple):
        left: torch.Tensor
        right: torch.Tensor

    class Own(Layer):
        def forward(self, x):
            return Halves(super().forward(x), x / 2)

    return Own()


def test_layers_may_return_classes_of_one_name():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(layer_with_a_class_of_its_own() for _ in "ab")

        def forward(self, x):
            for layer in self.layers:
                found = layer(x)
                x = found.left - found.right
            return x

    spec, chain = split_module(Model(), FLOATS)
    assert len(chain.blocks) == 2
    assert_exact(spec, chain, torch.randn(3, 8))


@pytest.mark.parametrize("kind", ["tuple", "nested", "named", "texts"])
def test_a_chain_says_what_shape_propagation_says(kind):
    module, example = (Tied(), TOKENS) if kind == "texts" else (Returns(kind), FLOATS)
    spec, chain = split_module(module, example)
    found, right = chain.traced(), propagate(spec, module, [example], {})
    shapes = [[leaf.shape for leaf in leaves_of(t.output)] for t in (found, right)]
    assert shapes[0] == shapes[1]
    assert (found.floating, found.uneven) == (right.floating, right.uneven)


def test_a_chain_says_nothing_of_sizes_that_values_decide():
    class Drops(nn.Linear):
        def forward(self, x):
            return super().forward(x[x[:, 0] > 0])

    _, chain = split_module(nn.Sequential(Drops(8, 8), Drops(8, 8)), FLOATS)
    assert chain.traced() is None


def test_tied_embedding_is_in_both_ends():  # PP-3
    module = Tied()
    spec, chain = split_module(module, TOKENS)
    assert "embed.weight" in chain.blocks[0].tensors
    assert "embed.weight" in chain.blocks[-1].tensors
    assert_exact(spec, chain, torch.randint(20, (3, 4)))


def test_texts_may_have_any_length():  # PP-8
    spec, chain = split_module(Masked(), TOKENS, attention_mask=TOKENS)
    for rows, length in ((1, 1), (3, 17), (2, 5)):
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[0, length // 2 + 1 :] = 0
        ids = torch.randint(20, (rows, length))
        assert_exact(spec, chain, ids, attention_mask=mask)


def test_defaults_and_call_kwargs_are_part_of_the_chain():  # PP-1
    module = Masked()
    spec, chain = split_module(module, TOKENS, call_kwargs={"scale": 3.0})
    ids = torch.randint(20, (3, 4))
    expected = module.eval()(ids, scale=3.0)
    same(run(spec, chain, (1,), (ids,), {}), expected)
    spec, plain = split_module(module, TOKENS)
    same(run(spec, plain, (1,), (ids,), {}) * 3.0, expected)


def test_optional_arguments_of_a_tokenizer_are_left_out():
    optional = Example("int64", (None,), optional=True)
    spec, chain = split_module(Tied(), ids=TOKENS, token_type_ids=optional)
    ids = torch.randint(20, (3, 4))
    carry = chain.bind((), {"ids": ids, "token_type_ids": ids})
    assert list(carry) == list(chain.cut_names(0))
    same(
        run(spec, chain, (1,), (), {"ids": ids, "token_type_ids": ids}),
        whole(spec, (ids,), {}),
    )


@pytest.mark.parametrize("kind", [Raw, Skips, Tied])
def test_dtype_is_that_of_the_stages(kind):  # PP-11
    example = TOKENS if kind is Tied else FLOATS
    spec, chain = split_module(kind(), example, dtype="bfloat16")
    assert chain.floating is torch.bfloat16
    given = torch.randint(20, (3, 4)) if kind is Tied else torch.randn(3, 8).bfloat16()
    assert_exact(spec, chain, given, dtype="bfloat16")


def test_the_users_module_is_untouched():  # PP-5
    module = Skips().train()
    before = copy.deepcopy(module.state_dict())
    names = list(vars(module))
    split(spec_of(module), module, [FLOATS], {})
    assert module.training and list(vars(module)) == names
    torch.testing.assert_close(module.state_dict(), before)
    assert pickle.loads(pickle.dumps(module))(torch.ones(2, 8)).requires_grad


def test_chain_holds_no_weights():
    wide = nn.Sequential(*(Layer(256) for _ in range(4)))
    nested = Skips()
    nested.layers = nn.ModuleList(Layer(256) for _ in range(4))
    for module in (wide, nested):
        _, chain = split_module(module, Example("floating", (256,)))
        assert chain.nbytes > 1_000_000
        assert len(pickle.dumps(chain)) < 60_000


# Sequences


def deep(layers: int) -> nn.Sequential:
    return nn.Sequential(*(Layer() for _ in range(layers)))


def test_blocks_of_a_sequence():
    nested = nn.Sequential(nn.Linear(8, 8), nn.Sequential(Layer(), Layer()), nn.ReLU())
    spec, chain = split_module(nested, FLOATS)
    assert [block.name for block in chain.blocks] == ["0", "1.0", "1.1"]
    assert_exact(spec, chain, torch.randn(3, 8))


def test_sequence_may_look_at_values():
    class Looks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else super().forward(x) * 2

    spec, chain = split_module(nn.Sequential(Looks(8, 8), Looks(8, 8)), FLOATS)
    assert_exact(spec, chain, torch.randn(3, 8))


def test_sequence_that_hands_on_tuples_is_cut_elsewhere():
    class Last(nn.Module):
        def forward(self, pair):
            return pair[0][:, -1], pair[1][0]

    module = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 4, batch_first=True), Last())
    spec, chain = split_module(module, Example("floating", (5, 8)))
    assert [block.name for block in chain.blocks] == ["0", "1"]
    assert_exact(spec, chain, torch.randn(3, 5, 8))


@pytest.mark.parametrize("depth", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_very_deep_chain(depth):  # PP-4
    spec, chain = split_module(deep(depth), FLOATS)
    assert len(chain.blocks) == depth
    x = torch.randn(2, 8)
    same(run(spec, chain, (67, 160), (x,), {}), whole(spec, (x,), {}))


# Code that asks for sizes

QUESTIONS = {
    "short": (lambda rows, length: length < 16, "ids.shape[1] < 16"),
    "odd": (lambda rows, length: length % 2 == 1, "ids.shape[1] % 2) == 1"),
    "other": (lambda rows, length: length != 20, "ids.shape[1] != 20"),
    "least": (lambda rows, length: min(length, 16) == length, "min(16, ids.shape[1])"),
    "few": (lambda rows, length: rows < 8, "ids.shape[0] < 8"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_sizes_of_another_branch_are_refused(question):  # PP-1
    asks, condition = QUESTIONS[question]
    spec, chain = split_module(Asks(asks), TOKENS)
    chain = pickle.loads(pickle.dumps(chain))
    assert_exact(spec, chain, torch.randint(20, (1, 9)))
    with pytest.raises(InputError, match=re.escape(condition)) as refusal:
        chain.bind((torch.randint(20, (8, 20)),), {})
    assert 'model "Asks"' in str(refusal.value)
    assert 'use parallel="data"' in str(refusal.value)


def test_guards_of_other_things_are_left_out():
    def forward(ids, *more, mask):
        pass

    lines = [
        "L['ids'].stride()[0] == 1",
        "L['unknown'].size()[0] < 3",
        "not L['more'][0].size()[1] // 2 > L['mask'].size()[0] + 1",
    ]
    given = {0: torch.ones(2), 1: torch.ones(1, 2), "mask": torch.ones(3)}
    (guard,) = guards_of(lines, forward, given)
    assert guard.text == "not more[0].shape[1] // 2 > mask.shape[0] + 1"
    assert guard.holds({1: torch.ones(1, 8), "mask": torch.ones(3)})
    assert not guard.holds({1: torch.ones(1, 10), "mask": torch.ones(3)})
    with pytest.raises(NameError):  # no question of sizes is left out
        guards_of(["unknown(L['ids'].size()[0]) < 3"], forward, given)


# Cuts that the user names


def test_cuts_are_where_they_are_named():  # PP-4
    spec, chain = split_module(Skips(), FLOATS, cuts=("layers.3", "layers.1"))
    assert [block.name for block in chain.blocks] == ["inputs", "layers.1", "layers.3"]
    assert_exact(spec, chain, torch.randn(3, 8))


def test_cut_inside_a_layer():  # PP-4
    spec, chain = split_module(Skips(), FLOATS, cuts=("layers.1.norm",))
    assert "layers.1.dense.weight" in chain.blocks[0].tensors
    assert "layers.1.norm.weight" in chain.blocks[1].tensors
    assert_exact(spec, chain, torch.randn(3, 8))


@pytest.mark.parametrize("module", [Skips(), nn.Sequential(Layer(), Layer())])
def test_cut_before_the_first_layer(module):  # PP-4
    first = "layers.0" if isinstance(module, Skips) else "0"
    spec, chain = split_module(module, FLOATS, cuts=(first,))
    assert chain.blocks[0].tensors == ()
    assert_exact(spec, chain, torch.randn(3, 8))
