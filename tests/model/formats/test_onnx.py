"""ONNX files: what they return is known before they run, and they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.formats.onnx import OnnxFormat
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import load
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.methods import MissingMethodError
from dask_infer.model.shapes.propagate import propagate
from dask_infer.model.shapes.trace_errors import (
    ArityMismatch,
    CannotTrace,
    Example,
    ShapeMismatch,
)
from dask_infer.replica.cache import ReplicaCache
from dask_infer.replica.worker_place import Place
from dask_infer.spec import ModelSpec

linear_model = pytest.importorskip("sklearn.linear_model")

FRAME = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0) % 3})
TARGET = (FRAME["a"] > 9).astype(int)
X, N = np.arange(6.0).reshape(3, 2), np.arange(3, dtype="int32")


def loaded(model: Any, **options: Any) -> LoadedModel:
    found = recognise(model)
    found.snapshot()
    return load(found.spec, **options)


# What the file says

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
    traced = propagate(spec, None, (floats(3, other="int64"),), {})
    assert traced.dtypes == {0: "int64"}


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


def test_methods_are_refused(graph):
    with pytest.raises(MissingMethodError, match="no method predict"):
        propagate(linear(graph), None, (floats(10),), {}, method="predict")


def test_missing_runtime_names_the_extra(graph, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ModelLoadError, match=r"dask-infer\[onnx\]"):
        propagate(linear(graph), None, (floats(10),), {})


# Runs


@pytest.fixture
def two_inputs(tmp_path: Path) -> Path:
    """y = 2 * x and z = [x, n] by row, of a matrix x and a column n."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["y"]),
            helper.make_node("Cast", ["n"], ["m"], to=kind.FLOAT),
            helper.make_node("Concat", ["x", "m"], ["z"], axis=1),
        ],
        "two",
        [
            helper.make_tensor_value_info("x", kind.FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("n", kind.INT64, ["rows", 1]),
        ],
        [
            helper.make_tensor_value_info("y", kind.FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("z", kind.FLOAT, ["rows", 3]),
        ],
    )
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    path = tmp_path / "two.onnx"
    onnx.save(model, path)
    return path


def test_onnx_takes_inputs_by_position_or_name(two_inputs: Path) -> None:
    model = loaded(two_inputs)
    assert model.interface == "numpy"
    assert model.accepts == {"x", "n"}
    assert model.nbytes == two_inputs.stat().st_size
    for args, kwargs in [((X, N), {}), ((X,), {"n": N}), ((), {"n": N, "x": X})]:
        output = model.call(args, kwargs)
        assert list(output) == ["y", "z"]
        np.testing.assert_array_equal(output["y"], 2 * X)
        assert output["z"].dtype == np.float32
        assert output["z"][:, 2].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((X,), {}, "got nothing for input 'n'; its inputs are x, n"),
        ((X,), {"count": N}, "has no input 'count'; its inputs are x, n"),
        ((X, N, N), {}, r"reads 2 inputs \(x, n\), not 3"),
        ((X, N + 0.5), {}, "input 'n'.*holds float64; cast the column"),
        ((["a"], N), {}, "input 'x'.*holds object"),
    ],
)
def test_onnx_refuses_what_does_not_fit(  # ON-10..12
    two_inputs: Path, args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        loaded(two_inputs).call(args, kwargs)


def test_onnx_of_an_estimator_gives_the_same(tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    estimator = linear_model.LogisticRegression().fit(FRAME.to_numpy(), TARGET)
    options = {id(estimator): {"zipmap": False}}
    sample = FRAME.to_numpy("float32")[:1]
    path = tmp_path / "net.onnx"
    path.write_bytes(
        skl2onnx.to_onnx(estimator, sample, options=options).SerializeToString()
    )
    output = loaded(path).call((FRAME.to_numpy(),), {})
    wanted = estimator.predict_proba(FRAME.to_numpy())
    np.testing.assert_allclose(output["probabilities"], wanted, atol=1e-5)


@pytest.mark.parametrize("has_cuda", [False, True])
def test_auto_is_the_device_that_onnxruntime_can_use(
    monkeypatch: pytest.MonkeyPatch, has_cuda: bool
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    found = ["CUDAExecutionProvider"] * has_cuda + ["CPUExecutionProvider"]
    monkeypatch.setattr(runtime, "get_available_providers", lambda: found)
    assert OnnxFormat().takes_host() is not has_cuda


def test_onnx_has_no_dtype_methods_or_gpu_here(two_inputs: Path) -> None:
    with pytest.raises(ModelLoadError, match="leave dtype= out"):
        loaded(two_inputs, dtype="float16")
    with pytest.raises(MissingMethodError, match="no method predict"):
        loaded(two_inputs).function("predict")
    with pytest.raises(ModelLoadError, match="onnxruntime cannot use CUDA"):
        loaded(two_inputs, device="cuda")


def test_damaged_onnx_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"nothing of the kind")
    spec = ModelSpec("k", "net", "onnx", path=str(path))
    with pytest.raises(ModelLoadError, match=str(path)):
        load(spec)


def test_missing_onnxruntime_names_the_extra(
    two_inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ModelLoadError, match=r'pip install "dask-infer\[onnx\]"'):
        loaded(two_inputs)


@pytest.mark.parametrize("labels", [None, ["eggs", "ham", "spam"]])
def test_zipped_probabilities_of_an_onnx_export_are_lists(
    tmp_path: Path, labels: list[str] | None
) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    three = np.arange(20) % 3
    target = three if labels is None else np.array(labels)[three]
    estimator = linear_model.LogisticRegression().fit(FRAME.to_numpy(), target)
    path = tmp_path / "net.onnx"
    sample = FRAME.to_numpy("float32")[:1]
    path.write_bytes(skl2onnx.to_onnx(estimator, sample).SerializeToString())
    ddf = dd.from_pandas(FRAME, npartitions=3)
    pred = ddf.infer.predict(str(path), columns=["a", "b"], keep=False)
    assert list(pred.columns) == ["output_label", "output_probability"]
    found = pred.compute(scheduler="sync")
    assert (
        found["output_label"].tolist() == estimator.predict(FRAME.to_numpy()).tolist()
    )
    wanted = estimator.predict_proba(FRAME.to_numpy())
    given = np.stack(found["output_probability"])
    np.testing.assert_allclose(given, wanted, atol=1e-5)


def test_onnx_takes_the_workers_share_of_cores(two_inputs: Path) -> None:
    session = loaded_with_threads(two_inputs, 3)
    assert session.get_session_options().intra_op_num_threads == 3


def loaded_with_threads(path: Path, threads: int) -> Any:
    """Load by the cache of a process whose forwards have so many threads."""
    place = Place("local", threads, lambda: 0)
    spec = recognise(path).spec
    before = torch.get_num_threads()
    try:
        with ReplicaCache().lease(spec, place, device="cpu") as replica:
            return replica.loaded.target
    finally:
        torch.set_num_threads(before)


def test_weights_beside_the_graph_count_whatever_their_file_is_called(
    graph, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    path = Path(str(linear(graph).path))
    model, ones = onnx.load(path), np.ones((10, 3), "float32")
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(ones, "w"))
    onnx.external_data_helper.convert_model_to_external_data(
        model, location="weights.bin", size_threshold=0
    )
    onnx.save(model, path)
    first = recognise(path).spec
    weights = np.full((10, 3), 2, "float32")
    weights.tofile(tmp_path / "weights.bin")
    second = recognise(path).spec
    assert second.key != first.key
    assert second.nbytes == path.stat().st_size + weights.nbytes
