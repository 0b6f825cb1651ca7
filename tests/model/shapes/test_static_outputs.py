"""ONNX files and sentence-transformers directories say what they return."""

import json
import struct

import numpy as np
import pytest
import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.runtime.methods import MissingMethodError
from dask_infer.model.shapes.propagate import (
    ArityMismatch,
    CannotTrace,
    Example,
    ShapeMismatch,
    propagate,
)
from dask_infer.model.shapes.static_outputs import embedding_width
from dask_infer.spec import ModelSpec

# ONNX

FLOAT, LONG, TEXT = 1, 7, 8  # element types of ONNX


@pytest.fixture
def graph(tmp_path):
    """Writes a graph of given inputs, nodes and outputs; returns its spec."""
    helper = pytest.importorskip("onnx.helper")
    pytest.importorskip("onnxruntime")

    def write(inputs, outputs, *nodes, **weights):
        values = [
            [
                helper.make_tensor_value_info(name, *value)
                for name, value in side.items()
            ]
            for side in (inputs, outputs)
        ]
        tensors = [
            helper.make_tensor(name, FLOAT, array.shape, array.ravel())
            for name, array in weights.items()
        ]
        body = helper.make_graph(
            [helper.make_node(*node) for node in nodes], "g", *values, tensors
        )
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(body, opset_imports=opset, ir_version=8)
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        return ModelSpec(key="0", name="m", kind="onnx", path=str(path))

    return write


def linear(graph, rows="n"):
    return graph(
        {"x": (FLOAT, [rows, 10])},
        {"y": (FLOAT, [rows, 3])},
        ("MatMul", ["x", "w"], ["y"]),
        w=np.ones((10, 3), "float32"),
    )


def floats(*shape, **kwargs):
    return Example("floating", shape, **kwargs)


def test_one_output_is_an_array(graph):
    traced = propagate(linear(graph), None, (floats(10),), {})
    assert (traced.output.shape, traced.output.dtype) == (
        (traced.rows, 3),
        torch.float32,
    )
    assert traced.floating == "float32"


@pytest.mark.parametrize("rows", [None, "batch"])
def test_the_first_axis_is_rows_whatever_its_name(graph, rows):
    traced = propagate(linear(graph, rows), None, (), {"x": floats(10)})
    assert traced.output.shape == (traced.rows, 3)


def test_several_outputs_by_name_with_sizes_worked_out(graph):
    spec = graph(
        {"a": (LONG, ["n", "t"]), "b": (LONG, ["n", "t"])},
        {"sum": (LONG, ["n", "t"]), "both": (LONG, ["n", "s"])},
        ("Add", ["a", "b"], ["sum"]),
        ("Shape", ["a"], ["like"]),
        ("Expand", ["b", "like"], ["both"]),
    )
    tokens = Example("int64", (None,))
    traced = propagate(spec, None, (tokens, tokens), {})
    assert set(traced.output) == {"sum", "both"}
    assert traced.output["both"].shape == (traced.rows, traced.tokens)
    assert traced.output["sum"].dtype == torch.int64


def test_stacked_integers_go_in_as_the_graph_says(graph):
    spec = graph(
        {"x": (LONG, ["n", 3])}, {"y": (LONG, ["n", 3])}, ("Neg", ["x"], ["y"])
    )
    traced = propagate(spec, None, (floats(3, integers=True),), {})
    assert traced.integers


def test_text_outputs_are_arrays_of_text(graph):
    spec = graph({"x": (TEXT, ["n"])}, {"y": (TEXT, ["n"])}, ("Identity", ["x"], ["y"]))
    traced = propagate(spec, None, (Example("string"),), {})
    assert traced.output.shape == (traced.rows,)
    assert traced.output.dtype.kind == "U"


def test_maps_of_classifiers_are_lists_of_probabilities(tmp_path):
    convert = pytest.importorskip("skl2onnx")
    linear_model = pytest.importorskip("sklearn.linear_model")
    x = np.random.default_rng(0).random((20, 4)).astype("float32")
    model = linear_model.LogisticRegression().fit(x, x[:, 0] > 0.5)
    path = tmp_path / "m.onnx"
    path.write_bytes(convert.to_onnx(model, x).SerializeToString())
    spec = ModelSpec(key="0", name="m", kind="onnx", path=str(path))
    traced = propagate(spec, None, (floats(4),), {})
    assert list(traced.output) == ["output_label", "output_probability"]
    assert traced.output["output_probability"].shape == (traced.rows, 2)


@pytest.mark.parametrize(
    ("examples", "error", "words"),
    [
        ((floats(7),), ShapeMismatch, r"expects \(n, 10\) in input \"x\".*\(n, 7\)"),
        ((floats(),), ShapeMismatch, r"expects \(n, 10\)"),
        ((Example("string", (10,)),), ShapeMismatch, '"x" is float32, argument 1 is s'),
        ((floats(10), floats(10)), ArityMismatch, "takes 1 arguments, x"),
        ((), ArityMismatch, "columns give nothing"),
    ],
    ids=["width", "rank", "dtype", "many", "none"],
)
def test_inputs_are_checked(graph, examples, error, words):  # ON-10..12
    with pytest.raises(error, match=words):
        propagate(linear(graph), None, examples, {})


def test_floats_are_no_integers(graph):  # ON-10..12
    spec = graph(
        {"x": (LONG, ["n", 3])}, {"y": (LONG, ["n", 3])}, ("Neg", ["x"], ["y"])
    )
    with pytest.raises(ShapeMismatch, match="is int64, argument 1 is float32"):
        propagate(spec, None, (floats(3),), {})


def test_unmapped_input_is_named(graph):  # ON-10..12
    with pytest.raises(ArityMismatch, match=r'takes 1 arguments, x; .*argument "z"'):
        propagate(linear(graph), None, (), {"z": floats(10)})


def test_fixed_batch_asks_for_a_dynamic_one(graph):
    with pytest.raises(CannotTrace, match=r"exactly 4 rows.*dynamic.*meta="):
        propagate(linear(graph, 4), None, (floats(10),), {})


def test_methods_are_refused(graph, pipeline):
    with pytest.raises(MissingMethodError, match="no method predict"):
        propagate(linear(graph), None, (floats(10),), {}, method="predict")
    with pytest.raises(CannotTrace, match=r"what encode returns.*meta="):
        embed(pipeline(TRANSFORMER, ("Pooling", LEGACY)), method="encode")


def test_missing_runtime_names_the_extra(graph, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ModelLoadError, match=r"dask-infer\[onnx\]"):
        propagate(linear(graph), None, (floats(10),), {})


# sentence-transformers


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


def test_width_of_static_embeddings(pipeline):
    directory = pipeline(("StaticEmbedding", {}))
    entry = {"dtype": "F32", "shape": [100, 24], "data_offsets": [0, 9600]}
    header = json.dumps({"__metadata__": {}, "embedding.weight": entry}).encode()
    weights = directory / "0_StaticEmbedding" / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", len(header)) + header)
    assert embedding_width(directory) == 24


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
