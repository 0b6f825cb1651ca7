from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import (
    LoadedModel,
    MissingMethodError,
    check_method,
    load,
)
from dask_infer.replica.cache import ReplicaCache
from dask_infer.replica.worker_place import Place
from dask_infer.spec import ModelSpec

linear_model = pytest.importorskip("sklearn.linear_model")

FRAME = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0) % 3})
TARGET = (FRAME["a"] > 9).astype(int)


def loaded(model: Any, **options: Any) -> LoadedModel:
    found = recognise(model)
    found.snapshot()
    return load(found.spec, **options)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_estimator_gives_what_its_method_gives(method: str) -> None:  # DM-01..08
    estimator = linear_model.LogisticRegression().fit(FRAME, TARGET)
    model = loaded(estimator)
    wanted = getattr(estimator, method)(FRAME)
    np.testing.assert_array_equal(model.call((FRAME,), {}, method), wanted)
    assert (model.interface, model.floating) == ("frame", None)
    assert model.nbytes > 100


def test_estimator_predicts_unless_told_otherwise() -> None:
    estimator = linear_model.LogisticRegression().fit(FRAME, TARGET)
    output = loaded(estimator).call((FRAME,), {})
    np.testing.assert_array_equal(output, estimator.predict(FRAME))


def test_missing_method_names_the_estimator_and_what_it_has() -> None:  # DM-01..08
    estimator = linear_model.LinearRegression().fit(FRAME, TARGET)
    text = "LinearRegression has no method predict_proba; it has predict"
    with pytest.raises(MissingMethodError, match=text):
        check_method(estimator, "predict_proba")
    with pytest.raises(AttributeError, match=text):
        loaded(estimator, method="predict_proba")
    check_method(estimator, "predict")


def test_dtype_is_for_torch_modules_only() -> None:
    estimator = linear_model.LinearRegression().fit(FRAME, TARGET)
    for model in (estimator, np.tanh):
        with pytest.raises(ModelLoadError, match="leave dtype= out"):
            loaded(model, dtype="bfloat16")


def test_function_is_called_as_it_is() -> None:
    def scale(x: np.ndarray, factor: float = 2.0) -> np.ndarray:
        return x * factor

    model = loaded(scale)
    assert model.interface == "numpy"
    assert model.accepts == {"x", "factor"}
    assert model.call((np.ones(3),), {"factor": 3.0}).tolist() == [3, 3, 3]


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = recognise(linear_model.LinearRegression().fit(FRAME, TARGET)).spec
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelLoadError, match=r"LinearRegression.*\[scikit-learn\]"):
        load(spec)


# ONNX


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


X, N = np.arange(6.0).reshape(3, 2), np.arange(3, dtype="int32")


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


def test_onnx_has_no_dtype_methods_or_gpu_here(two_inputs: Path) -> None:
    with pytest.raises(ModelLoadError, match="leave dtype= out"):
        loaded(two_inputs, dtype="float16")
    with pytest.raises(MissingMethodError, match="no method predict"):
        loaded(two_inputs, method="predict")
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


@pytest.mark.parametrize("dtype", ["float64", "Float64", "float64[pyarrow]"])
def test_an_estimator_fitted_on_arrays_does_not_warn_of_names(dtype: str) -> None:
    estimator = linear_model.LinearRegression().fit(FRAME.to_numpy(), TARGET)
    output = loaded(estimator).call((FRAME.astype(dtype),), {})
    np.testing.assert_allclose(output, estimator.predict(FRAME.to_numpy()))


def test_an_estimator_picks_the_columns_it_was_fitted_on() -> None:
    estimator = linear_model.LinearRegression().fit(FRAME, TARGET)
    wider = FRAME.assign(c=1.0)[["c", "b", "a"]]
    output = loaded(estimator).call((wider,), {})
    np.testing.assert_array_equal(output, estimator.predict(FRAME))
    with pytest.raises(ValueError, match="feature names"):
        loaded(estimator).call((wider[["c", "a"]],), {})


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
