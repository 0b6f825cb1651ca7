"""Sentence embeddings, pooling and normalisation included."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import load
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split import CannotSplit, load_stage, split
from tests.model.split.models import run, same

TEXT = Example("int64", (None,))
TEXTS = {"input_ids": TEXT, "attention_mask": TEXT, "token_type_ids": TEXT}


def batch(rows: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1000, 2000, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, length // 2 + 1 :] = 0
    types = torch.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def test_pipeline_is_split_with_its_pooling(minilm):
    pytest.importorskip("sentence_transformers")
    spec = recognise(minilm).spec
    chain = split(spec, None, [], TEXTS)
    assert [block.name.rpartition(".")[2] for block in chain.blocks][1:7] == [*"012345"]
    model = load(spec)
    for rows, length in ((1, 5), (4, 12)):
        tokens = batch(rows, length)
        same(run(spec, chain, (3,), (), tokens), model.call((), tokens))
    halves = [load_stage(spec, chain, *ends).nbytes for ends in ((0, 3), (3, 7))]
    assert all(0 < nbytes < chain.nbytes for nbytes in halves)


def test_other_modules_are_named(minilm, tmp_path):
    pytest.importorskip("sentence_transformers")
    place = tmp_path / "model"
    shutil.copytree(minilm, place)
    listed = json.loads((place / "modules.json").read_text())
    listed[1]["type"] = "sentence_transformers.models.CNN"
    (place / "modules.json").write_text(json.dumps(listed))
    spec = recognise(place).spec
    with pytest.raises(CannotSplit, match=r"module sentence_transformers.models.CNN"):
        split(spec, None, [], TEXTS)


def test_a_pooling_that_leaves_out_the_prompt_is_refused(minilm, tmp_path):
    pytest.importorskip("sentence_transformers")
    place = tmp_path / "model"
    shutil.copytree(minilm, place)
    file = place / "1_Pooling" / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "include_prompt": False}))
    with pytest.raises(CannotSplit, match="leaves out the prompt"):
        split(recognise(place).spec, None, [], TEXTS)


def test_settings_that_change_the_result_are_refused(minilm, tmp_path):
    pytest.importorskip("sentence_transformers")
    place = tmp_path / "model"
    shutil.copytree(minilm, place)
    file = place / "sentence_bert_config.json"
    file.write_text(json.dumps({"query_expansion": {"token": "[MASK]"}}))
    with pytest.raises(CannotSplit, match="setting query_expansion"):
        split(recognise(place).spec, None, [], TEXTS)


def test_dense_layers_are_read_from_their_own_directory(minilm, tmp_path):
    models = pytest.importorskip("sentence_transformers.models")
    place = tmp_path / "model"
    shutil.copytree(minilm, place)
    (place / "3_Dense").mkdir()
    models.Dense(384, 8).save(str(place / "3_Dense"))
    listed = json.loads((place / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    listed.append({"idx": 3, "name": "3", "path": "3_Dense", "type": kind})
    (place / "modules.json").write_text(json.dumps(listed))
    spec = recognise(place).spec
    chain = split(spec, None, [], TEXTS)
    assert chain.blocks[-1].nbytes == (384 + 1) * 8 * 4
    tokens = batch(2, 5)
    cut = len(chain.blocks) - 1
    same(run(spec, chain, (cut,), (), tokens), load(spec).call((), tokens))
