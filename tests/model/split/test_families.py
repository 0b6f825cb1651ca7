"""Hugging Face families in two and three stages: PP-8."""

from __future__ import annotations

import pickle

import pytest

from dask_infer.model.split import split
from tests.model.split import families
from tests.model.split.models import run, same, spec_of, whole

pytest.importorskip("transformers")

#: Loops over its tokens, inside layers: torch exports it for one length alone.
LOOPS = "MambaForCausalLM"
#: Run with the fast tests: own layers, a layer that is exported, images.
FAST = {"BertForSequenceClassification", "ResNetForImageClassification", LOOPS}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in families.FAMILIES
    ],
)
def test_stages_equal_the_model(name):
    model = families.build(name)
    spec = spec_of(model)
    chain = split(spec, model, [], families.examples(name))
    chain = pickle.loads(pickle.dumps(chain))
    count = len(chain.blocks)
    assert count >= 4
    # Other rows and lengths than the traced ones, padded masks.
    for rows, length in ((1, 7), (3, 20), (7, 5)):
        batch = families.batch(name, rows, length)
        expected = whole(spec, (), batch)
        for cuts in ((count // 2,), (count // 3, 2 * count // 3)):
            same(run(spec, chain, cuts, (), batch), expected)


def test_layers_run_as_the_models_own():
    model = families.build("BertForSequenceClassification")
    chain = split(spec_of(model), model, [], families.examples(type(model).__name__))
    own = {path for path in chain.layers() if "layer" in path}
    assert own == {f"bert.encoder.layer.{n}" for n in range(3)}


def test_residuals_are_not_torn_apart():
    model = families.build("ResNetForImageClassification")
    chain = split(spec_of(model), model, [], families.examples(type(model).__name__))
    assert [block.name for block in chain.blocks] == [
        "resnet.embedder",
        "resnet.encoder.stages.0",
        "resnet.encoder.stages.1.layers.0",
        "resnet.encoder.stages.1.layers.1",
        "classifier.1",
    ]


def test_a_loop_over_tokens_inside_layers():
    model = families.build(LOOPS)
    chain = split(spec_of(model), model, [], families.examples(LOOPS))
    assert {f"backbone.layers.{n}" for n in range(3)} <= chain.layers().keys()
