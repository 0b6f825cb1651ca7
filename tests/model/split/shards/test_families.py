"""Hugging Face families as two stages of two shards, and of three and four."""

from __future__ import annotations

import pickle

import pytest
import torch

from dask_infer.model.split import split
from dask_infer.model.split.shards.trial import find_cuts
from tests.model.split import families
from tests.model.split.models import fields, spec_of, whole
from tests.model.split.shards.ranks import run_sharded

pytest.importorskip("transformers")

#: Layers so narrow that norms and biases, which stay whole, are a tenth of them.
NARROW = {"SwinForImageClassification", "ConvNextForImageClassification"}
#: Run with the fast tests: plain layers, experts, tied weights.
FAST = {"BertForSequenceClassification", "MixtralForCausalLM", "T5EncoderModel"}


def by_speed(name: str) -> object:
    return pytest.param(name, marks=() if name in FAST else pytest.mark.slow)


@pytest.mark.parametrize("shards", [2, pytest.param(3, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("name", [by_speed(name) for name in families.FAMILIES])
def test_stages_in_shards_equal_the_model(name, shards):
    torch.manual_seed(0)
    model = families.build(name)
    with torch.no_grad():  # large enough that what is wrong is far off
        for weight in model.parameters():
            if weight.ndim > 1 and weight.is_floating_point():
                weight.normal_(0, 0.1)
    spec = spec_of(model)
    chain = split(spec, model, [], families.examples(name))
    chain = pickle.loads(pickle.dumps(chain))
    found = find_cuts(chain, shards)
    # Other rows and lengths than the traced ones, padded masks.
    for rows, length in ((1, 7), (3, 20)):
        batch = families.batch(name, rows, length)
        cuts = (len(chain.blocks) // 2,)
        expected = fields(whole(spec, (), batch))
        for each in ((), found):
            output, shares = run_sharded(spec, chain, cuts, shards, batch, found=each)
            torch.testing.assert_close(fields(output), expected, atol=1e-5, rtol=1e-5)
        if name in NARROW:
            assert max(shares) < 1 / shards + 0.25
        else:
            assert max(shares) < (0.6 if shards == 2 else 1 / shards + 0.15)
