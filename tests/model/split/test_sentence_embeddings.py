"""Sentence embeddings in stages, pooling and normalisation included."""

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


@pytest.mark.parametrize("kind", ["directory", "object"])
def test_pipeline_is_split_with_its_pooling(minilm, kind):
    library = pytest.importorskip("sentence_transformers")
    given = minilm
    if kind == "object":
        given = library.SentenceTransformer(str(minilm), device="cpu")
    found = recognise(given)
    found.snapshot()
    spec = found.spec
    chain = split(spec, found.live, [], TEXTS)
    assert [block.name.rpartition(".")[2] for block in chain.blocks][1:7] == [*"012345"]
    model = load(spec)
    for rows, length in ((1, 5), (4, 12)):
        tokens = batch(rows, length)
        same(run(spec, chain, (3,), (), tokens), model.call((), tokens))
    halves = [load_stage(spec, chain, *ends).nbytes for ends in ((0, 3), (3, 7))]
    assert all(0 < nbytes < chain.nbytes for nbytes in halves)


@pytest.fixture
def copied(minilm, tmp_path):
    """A copy of the directory, to be changed."""
    pytest.importorskip("sentence_transformers")
    return shutil.copytree(minilm, tmp_path / "model")


def test_a_prompt_that_the_pooling_leaves_out(copied):
    """It reads where each row starts, which no export follows; without one it runs."""
    file = copied / "1_Pooling" / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "include_prompt": False}))
    spec, tokens = recognise(copied).spec, batch(2, 5)
    chain = split(spec, None, [], TEXTS)
    same(run(spec, chain, (3,), (), tokens), load(spec).call((), tokens))
    file = copied / "config_sentence_transformers.json"
    prompt = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **prompt}))
    with pytest.raises(CannotSplit, match="pad_lengths"):
        split(recognise(copied).spec, None, [], TEXTS)


def test_dense_layers_are_read_from_their_own_directory(copied):
    models = pytest.importorskip("sentence_transformers.models")
    (copied / "3_Dense").mkdir()
    models.Dense(384, 8).save(str(copied / "3_Dense"))
    listed = json.loads((copied / "modules.json").read_text())
    kind = "sentence_transformers.models.Dense"
    listed.append({"idx": 3, "name": "3", "path": "3_Dense", "type": kind})
    (copied / "modules.json").write_text(json.dumps(listed))
    spec = recognise(copied).spec
    chain = split(spec, None, [], TEXTS)
    assert chain.blocks[-1].nbytes == (384 + 1) * 8 * 4
    tokens = batch(2, 5)
    cut = len(chain.blocks) - 1
    same(run(spec, chain, (cut,), (), tokens), load(spec).call((), tokens))


def test_a_decoder_is_split_between_its_layers(minilm, tmp_path):
    models = pytest.importorskip("sentence_transformers.models")
    transformers = pytest.importorskip("transformers")
    library = pytest.importorskip("sentence_transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"num_hidden_layers": 4, "vocab_size": 31_000}
    decoder = transformers.Qwen3Model(transformers.Qwen3Config(**sizes))
    decoder.save_pretrained(tmp_path / "decoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    tokenizer.save_pretrained(tmp_path / "decoder")
    parts = [models.Transformer(str(tmp_path / "decoder"))]
    parts.append(models.Pooling(16, pooling_mode="lasttoken"))
    embedder = library.SentenceTransformer(modules=parts, device="cpu")
    embedder.save_pretrained(str(tmp_path / "embedder"))
    spec, tokens = recognise(tmp_path / "embedder").spec, batch(2, 5)
    del tokens["token_type_ids"]
    chain = split(spec, None, [], dict.fromkeys(tokens, TEXT))
    assert len(chain.blocks) >= 4
    same(run(spec, chain, (2,), (), tokens), load(spec).call((), tokens))
