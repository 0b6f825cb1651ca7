"""Directories of sentence-transformers say what they return."""

import json

import pytest
import torch

from dask_infer.model.formats.sentence_transformers import embedding_width
from dask_infer.model.shapes.propagate import propagate
from dask_infer.model.shapes.trace_errors import CannotTrace, Example
from dask_infer.spec import ModelSpec


def floats(*shape, **kwargs):
    return Example("floating", shape, **kwargs)


@pytest.fixture
def pipeline(tmp_path):
    """Writes modules.json and the modules' configs; returns the directory."""

    def write(*modules):
        entries = []
        for place, (kind, config) in enumerate(modules):
            path = f"{place}_{kind}"
            (tmp_path / path).mkdir()
            (tmp_path / path / "config.json").write_text(json.dumps(config))
            entries.append(
                {"type": f"sentence_transformers.models.{kind}", "path": path}
            )
        (tmp_path / "modules.json").write_text(json.dumps(entries))
        return tmp_path

    return write


TRANSFORMER = ("Transformer", {"hidden_size": 16})
LEGACY = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False}
LEGACY |= {"pooling_mode_mean_tokens": True}


@pytest.mark.parametrize(
    ("modules", "width"),
    [
        ([("Pooling", LEGACY)], 16),
        ([("Pooling", {**LEGACY, "pooling_mode_max_tokens": True})], 32),
        ([("Pooling", {"embedding_dimension": 16, "pooling_mode": "cls"})], 16),
        ([("Pooling", {"embedding_dimension": 8, "pooling_mode": ["cls", "max"]})], 16),
        ([("Pooling", LEGACY), ("Dense", {"out_features": 5}), ("Normalize", {})], 5),
        ([("Pooling", LEGACY), ("Novelty", {})], None),
    ],
    ids=["mean", "two ways", "new config", "two ways, new", "dense", "unknown"],
)
def test_embedding_width(pipeline, modules, width):
    assert embedding_width(pipeline(TRANSFORMER, *modules)) == width


def embed(directory, **kwargs):
    spec = ModelSpec(
        key="0", name="m", kind="sentence-transformers", path=str(directory)
    )
    return propagate(spec, None, (), {"input_ids": Example("int64", (None,))}, **kwargs)


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (None, None, "float32"),
        ("float16", None, "float16"),
        (None, "float64", "float64"),
    ],
)
def test_one_embedding_a_row(pipeline, stored, asked, expected):
    config = {"hidden_size": 16} | ({"dtype": stored} if stored else {})
    traced = embed(pipeline(("Transformer", config), ("Pooling", LEGACY)), dtype=asked)
    assert traced.output.shape == (traced.rows, 16)
    assert traced.output.dtype == getattr(torch, expected)
    assert traced.floating == expected


def test_unknown_modules_ask_for_meta(pipeline):
    with pytest.raises(CannotTrace, match=r"how wide an embedding is.*meta="):
        embed(pipeline(TRANSFORMER, ("Novelty", {})))


def test_a_real_pipeline(minilm):
    assert embed(minilm).output.shape[1] == 384


def test_methods_are_refused(pipeline):
    with pytest.raises(CannotTrace, match=r"what encode returns.*meta="):
        embed(pipeline(TRANSFORMER, ("Pooling", LEGACY)), method="encode")
