"""Stages with their own tensors and no others: AC, PP-12."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.checkpoints.safetensors_checkpoint import Checkpoint
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import load
from dask_infer.model.source import ModelSource
from dask_infer.model.split import load_stage, split
from dask_infer.spec import ModelSpec
from tests.model.split import families
from tests.model.split.models import (
    FLOATS,
    TOKENS,
    Layer,
    Skips,
    Tied,
    run,
    same,
    split_module,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the tensors that are read from safetensors files."""
    names: list[str] = []
    get = Checkpoint.get

    def noted(self: Any, name: str, part: Any = None) -> torch.Tensor:
        names.append(name)
        return get(self, name, part)

    monkeypatch.setattr(Checkpoint, "get", noted)
    yield names


def save(name: str, place: Path, change: Any = None) -> ModelSpec:
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = families.build(name)
    (change(model) if change else model).save_pretrained(place)
    return recognise(str(place)).spec


def read_and_compare(spec: ModelSpec, name: str, asked: list[str]) -> None:
    """Each stage asks for its own tensors; together they are the whole model."""
    chain = split(spec, None, [], families.examples(name))
    cut = len(chain.blocks) // 2
    names = []
    nbytes = 0
    for start, stop in ((0, cut), (cut, len(chain.blocks))):
        asked.clear()
        stage = load_stage(spec, chain, start, stop)
        assert stage.nbytes == chain.stage_bytes(start, stop) < chain.nbytes
        names += asked
        nbytes += stage.nbytes
    shared = set(names) - {n for n in names if names.count(n) == 1}
    assert nbytes == chain.nbytes + sum(chain.tensors[n].nbytes for n in shared)
    model = load(spec)
    for rows, length in ((1, 4), (3, 9)):
        batch = families.batch(name, rows, length)
        expected = model.call((), batch)
        same(run(spec, chain, (cut,), (), batch), expected)


@pytest.mark.parametrize(
    "name", ["BertForSequenceClassification", "GPT2LMHeadModel", "T5EncoderModel"]
)
def test_directory_is_read_stage_by_stage(name, tmp_path, asked):
    read_and_compare(save(name, tmp_path), name, asked)


@pytest.mark.slow
def test_packed_experts_are_read_by_the_librarys_rules(tmp_path, asked):
    name = "MixtralForCausalLM"
    spec = save(name, tmp_path)
    chain = split(spec, None, [], families.examples(name))
    first = next(n for n, b in enumerate(chain.blocks) if b.name.endswith("layers.1"))
    asked.clear()
    load_stage(spec, chain, first, first + 1)
    assert asked and all("layers.1." in name for name in asked)
    batch = families.batch(name, 2, 5)
    same(run(spec, chain, (first,), (), batch), load(spec).call((), batch))


def test_prefix_of_a_base_model_is_added(tmp_path, asked):
    spec = save("BertForSequenceClassification", tmp_path, lambda model: model.bert)
    chain = split(spec, None, [], families.examples("BertForSequenceClassification"))
    batch = families.batch("BertForSequenceClassification", 2, 5)
    same(run(spec, chain, (2,), (), batch), load(spec).call((), batch))


def test_dtype_of_the_directory_is_kept(tmp_path):
    name = "BertForSequenceClassification"
    spec = save(name, tmp_path, lambda model: model.bfloat16())
    chain = split(spec, None, [], families.examples(name))
    assert chain.floating is torch.bfloat16
    stage = load_stage(spec, chain, 1, 3)
    assert {t.dtype for t in stage.target.parameters()} == {torch.bfloat16}
    batch = families.batch(name, 2, 5)
    same(run(spec, chain, (2,), (), batch), load(spec).call((), batch))


def test_missing_tensors_are_named(tmp_path):
    name = "BertForSequenceClassification"
    spec = save(name, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors = {n: t.clone() for n, t in tensors.items() if n != "classifier.bias"}
    safetensors.torch.save_file(tensors, file)
    chain = split(spec, None, [], families.examples(name))
    load_stage(spec, chain, 0, 2)
    with pytest.raises(ModelLoadError, match=r"lacks weights.*classifier.bias"):
        load_stage(spec, chain, 2, len(chain.blocks))


class Rotary(nn.Module):
    """Has a buffer that is no part of checkpoints, computed as it is built."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.register_buffer("angles", torch.arange(8) / 3, persistent=False)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x) * self.angles.sin()
        return x


@pytest.mark.parametrize("build", [Rotary, Tied])
def test_factory_reads_its_weights_file_by_name(build, tmp_path, asked):
    arguments = (3,) if build is Rotary else ()
    module = build(*arguments).eval()
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_model(module, str(file))
    found = recognise(ModelSource.from_factory(build, *arguments, weights=file))
    found.snapshot()
    given = torch.randint(20, (2, 3)) if build is Tied else torch.randn(2, 8)
    example = TOKENS if build is Tied else FLOATS
    chain = split(found.spec, found.live, [example], {})
    asked.clear()
    load_stage(found.spec, chain, 1, 2)
    assert asked and all("layers." in name for name in asked)
    same(run(found.spec, chain, (1, 2), (given,), {}), module(given))


def test_stage_is_frozen_and_can_be_closed():
    spec, chain = split_module(Skips(), FLOATS)
    stage = load_stage(spec, chain, 0, 2)
    assert not any(p.requires_grad for p in stage.target.parameters())
    carry = chain.bind((torch.ones(2, 8),), {})
    before = dict(carry)
    made = stage.call((carry,), {})
    assert carry == before and set(made) == set(chain.cut_names(2))
    assert "Skips [0:2]" in repr(stage)
    stage.close()
    with pytest.raises(RuntimeError, match="closed"):
        stage.call((carry,), {})


def test_shared_tensor_is_one_object_in_a_stage():
    spec, chain = split_module(Tied(), TOKENS)
    stage = load_stage(spec, chain, 0, len(chain.blocks))
    assert stage.nbytes == chain.nbytes == sum(p.nbytes for p in Tied().parameters())
