"""Results that stay divided between layers: what is found, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dask_infer.model.split import split
from dask_infer.model.split.shards import DividedTensor, divided_results, trial
from dask_infer.model.split.shards.divided_tensor import RULES
from dask_infer.model.split.shards.trial import find_cuts
from tests.model.split import families
from tests.model.split.models import FLOATS, fields, spec_of, split_module, whole
from tests.model.split.shards.ranks import run_sharded


def stays(found: Any, name: str) -> tuple[int, int]:
    """Return the axis of a weight, and how many chunks it is divided in."""
    cut = dict(found)[name]
    assert cut.stays
    return cut.axis, len(cut.parts.chunks)


def assert_equal(spec: Any, chain: Any, shards: int, found: Any, *args: Any) -> None:
    output, _ = run_sharded(spec, chain, (), shards, {}, args, found)
    torch.testing.assert_close(output, whole(spec, args, {}), atol=1e-5, rtol=1e-5)


class Mixes(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8)
        self.between = between

    def forward(self, x: Any) -> Any:
        return x + self.down(self.between(self.up(x)))


def layers(between: Any) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(*(Mixes(between) for _ in range(3)))


def test_a_wide_middle_stays_divided_and_equal_layers_are_tried_once():
    spec, chain = split_module(layers(nn.GELU()), FLOATS)
    found = find_cuts(chain, 3)
    for layer in range(3):
        assert stays(found, f"{layer}.up.weight") == (0, 1)
        assert stays(found, f"{layer}.down.weight") == (1, 1)
    assert_equal(spec, chain, 3, found, torch.randn(5, 8))


def test_code_may_read_attributes_of_weights():
    class Scales(Mixes):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * self.up.weight.factor

    model = nn.Sequential(*(Scales(nn.GELU()) for _ in range(3)))
    for layer in model:
        layer.up.weight.factor = 0.5
    spec, chain = split_module(model, FLOATS)
    found = find_cuts(chain, 2)
    assert stays(found, "0.down.weight") == (1, 1)
    assert_equal(spec, chain, 2, found, torch.randn(5, 8))


def test_of_equal_layers_one_may_share_a_weight_with_another():
    """The first one's cuts had no place in it, and no group could be formed."""
    model = layers(nn.GELU())
    model[2].up.weight = model[1].up.weight
    spec, chain = split_module(model, FLOATS)
    found = find_cuts(chain, 2)
    assert stays(found, "0.up.weight") == (0, 1)
    assert not dict(found).keys() & {"1.up.weight", "2.up.weight"}
    assert_equal(spec, chain, 2, found, torch.randn(5, 8))


class Gates(Mixes):
    """Beside what is found in two rounds, what takes three."""

    def __init__(self) -> None:
        super().__init__(nn.GELU())
        self.beside = Mixes(nn.GELU())
        self.both, self.out = nn.Linear(8, 24), nn.Linear(12, 8)

    def forward(self, x: Any) -> Any:
        gate, up = self.both(x).chunk(2, -1)
        return super().forward(self.beside(x)) + self.out(F.silu(gate) * up)


def test_cuts_that_are_still_changing_are_not_used(monkeypatch):
    """The changes of the last round were used, and no trial had run with them."""
    _, chain = split_module(nn.Sequential(Gates(), Gates()), FLOATS)
    assert stays(find_cuts(chain, 2), "1.out.weight") == (1, 1)
    monkeypatch.setattr(trial, "ROUNDS", 2)
    assert find_cuts(chain, 2) == ()


def glu(x: Any) -> Any:
    gate, up = x.chunk(2, -1)
    return torch.cat([F.silu(gate) * up, up], -1)


class Softmax(nn.Module):
    def forward(self, x: Any) -> Any:
        return F.softmax(x, -1)


class Shifts(nn.Module):
    """Changes a result in place, and reads it under its first name."""

    def forward(self, x: Any) -> Any:
        kept = x
        x += 1
        return kept * 2


class Glu(nn.Module):
    def forward(self, x: Any) -> Any:
        return glu(x)


@pytest.mark.parametrize("between", [Softmax(), Shifts(), Glu()])
def test_what_has_no_rule_is_right(between):
    spec, chain = split_module(layers(between), FLOATS)
    assert_equal(spec, chain, 2, find_cuts(chain, 2), torch.randn(5, 8))


def test_results_that_are_changed_in_place_are_refused():
    _, chain = split_module(layers(Shifts()), FLOATS)
    assert find_cuts(chain, 2) == ()


def test_a_rule_that_is_wrong_is_found_by_the_trial(monkeypatch):
    # As if a softmax over all of the divided axis were one over each part.
    wrong = divided_results._elementwise(F.softmax)
    monkeypatch.setitem(RULES, F.softmax, (lambda x, dim: wrong(x, dim),))
    spec, chain = split_module(layers(Softmax()), FLOATS)
    assert find_cuts(chain, 2) == ()
    assert_equal(spec, chain, 2, (), torch.randn(5, 8))


def neox() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, vocab_size=100,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPTNeoXForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.2)
    return model


def test_heads_of_queries_keys_and_values_are_no_three_chunks():
    # Cut as GPT-2's, whose queries, keys and values are one behind the other, all
    # shapes of GPT-NeoX would fit, and its numbers differ by 1.
    model = neox()
    spec = spec_of(model)
    examples = {"input_ids": families.TEXT, "attention_mask": families.TEXT}
    chain = pickle.loads(pickle.dumps(split(spec, model, [], examples)))
    found = find_cuts(chain, 2)
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    assert stays(found, name) == (0, 1)
    cut = dict(found)[name]
    thirds = cut._replace(parts=type(cut.parts).even(96, 2, ends=(32, 64)))
    batch = families.batch("GPT2LMHeadModel", 3, 9)
    expected = fields(whole(spec, (), batch))
    for cuts in (found, tuple({**dict(found), name: thirds}.items())):
        output, _ = run_sharded(spec, chain, (1,), 2, batch, found=cuts)
        torch.testing.assert_close(fields(output), expected, atol=1e-5, rtol=1e-5)


def test_a_result_names_the_weight_that_it_comes_from():
    found = find_cuts(split_module(layers(nn.GELU()), FLOATS)[1], 2)
    part = dict(found)["0.up.weight"].parts
    weight = DividedTensor(torch.randn(12, 8), 0, part, True, True)
    assert weight.again(weight.part, 0).origin is weight
