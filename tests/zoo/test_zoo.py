"""Real models by the hundred: wrong none, late none, columns nearly always inferred.

The slow tests share their results: `test_the_columns_are_inferred` counts them all.
"""

from __future__ import annotations

import itertools
import re

import dask.dataframe as dd
import numpy as np
import pytest
import torch

from dask_infer import Layout
from tests.zoo import boosters, estimators, goals, stages, transformer
from tests.zoo.judge import compare, judge
from tests.zoo.reasons import explained
from tests.zoo.table import PAGE

for library in ("sklearn", "transformers", "xgboost", "lightgbm", "catboost"):
    pytest.importorskip(library)

#: Run with the fast tests.
ESTIMATORS = ("LogisticRegression", "PCA", "KMeans", "TfidfVectorizer")
BOOSTERS = ("XGBClassifier", "LGBMRegressor", "CatBoostClassifier")
ARCHITECTURES = {
    "BertForTokenClassification, ragged",
    "LlamaForSequenceClassification, ragged",
    "LlamaForCausalLM.generate",
    "ViTForImageClassification, fixed",
}


def test_a_sample():
    texts = itertools.chain(transformer.cases(), transformer.generated())
    cases = [
        *estimators.cases(ESTIMATORS),
        *boosters.cases(BOOSTERS),
        *(case for case in texts if case.name in ARCHITECTURES),
    ]
    results = [explained(judge(case)) for case in cases]
    assert len(results) >= 50
    assert goals.faults(results) == []
    assert goals.share_inferred(results) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_estimator_of_scikit_learn():
    results = goals.of_estimators()
    assert len(results) >= 930
    assert goals.faults(results) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_boosters_in_both_interfaces():
    results = goals.of_boosters()
    assert len(results) >= 118
    assert goals.faults(results) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_transformers_on_fixed_and_ragged_rows():
    assert len(list(transformer.classes())) >= 500
    results = goals.of_transformers()
    assert len(results) >= 800
    assert goals.faults(results) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generate_of_every_decoder():
    results = goals.of_generate()
    assert len(results) >= 80
    assert goals.faults(results) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_stages():
    results = goals.of_stages()
    assert len(results) >= 75
    assert sum(result.outcome == "inferred" for result in results) >= 60
    assert goals.faults(results) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_columns_are_inferred():
    assert goals.share_inferred(goals.everything()) >= goals.INFERRED


@pytest.mark.slow
def test_the_page_names_what_was_tried():
    text = PAGE.read_text()
    missing = [name for name, *_ in transformer.classes() if name not in text]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("pattern", transformer.LEAKS)
def test_padding_is_seen_by_the_model_itself(pattern):
    """Classes whose rows must be of equal length do not hide a fault of the library."""
    generates = pattern.endswith("generate")
    names = (
        each
        for each in transformer.classes()
        if re.match(pattern, f"{each[0]}.generate" if generates else each[0])
        and not (generates and each[0].endswith("Model"))
    )
    name, family, kind = next(names)
    model = transformer.build(name, family)
    batch, _ = stages.padded(name, family, kind)
    _, _, rows = transformer.inputs(name, family, kind, transformer.LENGTHS)
    if generates:
        right = model.generate(rows[0]["input_ids"], max_new_tokens=4)[0]
        left = {key: value.flip(1) for key, value in batch.items()}
        left["input_ids"][0, 4:] = rows[0]["input_ids"][0]
        given = model.generate(**left, max_new_tokens=4)[0, -4:]
        assert given.tolist() != right[-4:].tolist()
        return
    with torch.inference_mode():
        padded = model(**batch)
    single = transformer.alone(model, rows[0])
    off = [
        not np.allclose(padded[key][0].numpy()[: len(value)], value, atol=1e-2)
        for key, value in single.items()
    ]
    assert any(off)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["BertForPreTraining", "GPT2ForTokenClassification", "ViTForMaskedImageModeling"],
)
def test_two_stages_on_a_cluster(client, name):
    chosen = {each[0]: each for each in stages.chosen()}
    trial = transformer.trial(*chosen[name], transformer.LENGTHS)
    ddf = dd.from_pandas(trial.frame, npartitions=2)
    call = {**trial.call, "keep": False, "parallel": Layout(stages=2)}
    pred = ddf.infer.predict(trial.model, **call)
    assert compare(pred.compute(), pred, trial.expected(), trial) == ""
