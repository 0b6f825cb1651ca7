"""TensorFlow Lite files: what they return is known before they run, and they run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer.errors import InputError, ModelLoadError, OutputError
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import load
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.methods import MissingMethodError
from dask_infer.model.shapes.propagate import propagate
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.replica.cache import ReplicaCache
from dask_infer.replica.worker_place import Place

schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")

WEIGHTS = np.arange(12, dtype="float32").reshape(3, 4)
FRAME = pd.DataFrame(
    np.random.default_rng(0).normal(size=(50, 4)), columns=["a", "b", "c", "d"]
)
COLUMNS = list(FRAME.columns)
WANTED = FRAME.to_numpy("float32") @ WEIGHTS.T


class Writer:
    """A graph written by the schema of the format."""

    def __init__(self) -> None:
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.buffers, self.graph.tensors = [schema.BufferT()], []
        self.graph.operators, self.model.operatorCodes = [], []

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        type: str = "FLOAT32",
        data: np.ndarray | None = None,
    ) -> int:
        tensor = schema.TensorT()
        tensor.name, tensor.type = name, getattr(schema.TensorType, type)
        tensor.shape = [max(size, 1) for size in shape]
        tensor.shapeSignature, tensor.buffer = list(shape), 0
        if data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(
        self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: str
    ) -> None:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        number = getattr(schema.BuiltinOperator, name)
        code.builtinCode = code.deprecatedBuiltinCode = number
        code.version = 1
        operator.opcodeIndex = len(self.model.operatorCodes)
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        operator.builtinOptions = getattr(schema, f"{options}T")()
        self.model.operatorCodes.append(code)
        self.graph.operators.append(operator)

    def signature(self, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        """Give the graph the names of a function, as converters do."""

        def named(places: dict[str, int]) -> list[Any]:
            maps = []
            for name, place in places.items():
                maps.append(schema.TensorMapT())
                maps[-1].name, maps[-1].tensorIndex = name, place
            return maps

        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs, signature.outputs = named(inputs), named(outputs)
        self.model.signatureDefs = [signature]

    def write(self, path: Path, inputs: Sequence[int], outputs: Sequence[int]) -> Path:
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path


def linear(path: Path, rows: int = -1, weights: np.ndarray = WEIGHTS) -> Path:
    """Write y = x @ weights.T for (rows, 4)."""
    to = Writer()
    x = to.tensor("serving_default_x:0", [rows, 4])
    w = to.tensor("w", weights.shape, data=weights)
    y = to.tensor("PartitionedCall:0", [rows, len(weights)])
    to.operator("FULLY_CONNECTED", [x, w, -1], [y], "FullyConnectedOptions")
    to.signature({"x": x}, {"y": y})
    return to.write(path, [x], [y])


def two_inputs(path: Path) -> Path:
    """Write s = a + b, of int32 columns, and e = table[b]; without a signature."""
    to = Writer()
    a, b = (to.tensor(name, [-1, 1], "INT32") for name in "ab")
    table = to.tensor("t", [5, 2], data=np.arange(10, dtype="float32").reshape(5, 2))
    s, e = to.tensor("s", [-1, 1], "INT32"), to.tensor("e", [-1, 1, 2])
    to.operator("ADD", [a, b], [s], "AddOptions")
    to.operator("GATHER", [table, b], [e], "GatherOptions")
    return to.write(path, [a, b], [s, e])


def open_rows(path: Path) -> Path:
    """Write y = x + x, rows of any length."""
    to = Writer()
    x, y = to.tensor("x", [-1, -1]), to.tensor("y", [-1, -1])
    to.operator("ADD", [x, x], [y], "AddOptions")
    return to.write(path, [x], [y])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return linear(tmp_path / "net.tflite")


def loaded(path: Path, **options: Any) -> LoadedModel:
    return load(recognise(path).spec, **options)


def predicted(path: Path, scheduler: str = "sync", **options: Any) -> pd.DataFrame:
    ddf = dd.from_pandas(FRAME, npartitions=3)
    pred = ddf.infer.predict(str(path), columns=COLUMNS, keep=False, **options)
    result: pd.DataFrame = pred.compute(scheduler=scheduler)
    return result


# What the file says


def test_files_are_recognised_by_their_names(model: Path) -> None:
    spec = recognise(model).spec
    assert (spec.kind, spec.name, spec.path) == ("tflite", "net", str(model))
    assert spec.nbytes == model.stat().st_size


def test_other_content_is_another_model(model: Path) -> None:
    key = recognise(model).spec.key
    assert recognise(model).spec.key == key
    linear(model, weights=2 * WEIGHTS)
    assert recognise(model).spec.key != key


def test_outputs_are_known_without_running(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    for method in ("allocate_tensors", "invoke"):
        monkeypatch.setattr(Interpreter, method, lambda self: pytest.fail("it ran"))
    traced = propagate(recognise(model).spec, None, (Example("floating", (4,)),), {})
    assert traced.output.shape == (traced.rows, 3)
    assert (traced.output.dtype, traced.floating) == (torch.float32, "float32")


def test_several_outputs_have_their_names_and_dtypes(tmp_path: Path) -> None:
    spec = recognise(two_inputs(tmp_path / "two.tflite")).spec
    whole = Example("int64")
    traced = propagate(spec, None, (), {"a": whole, "b": whole})
    shapes = {name: tuple(t.shape[1:]) for name, t in traced.output.items()}
    assert shapes == {"s": (1,), "e": (1, 2)}
    assert traced.output["s"].dtype == torch.int32


def test_open_sizes_are_found_by_the_runtime(tmp_path: Path) -> None:
    spec = recognise(open_rows(tmp_path / "any.tflite")).spec
    traced = propagate(spec, None, (Example("floating", (7,)),), {})
    assert traced.output.shape == (traced.rows, 7)


def test_one_batch_size_asks_for_a_dynamic_one(tmp_path: Path) -> None:
    path = linear(tmp_path / "one.tflite", rows=1)
    with pytest.raises(OutputError, match=r"exactly 1 row: convert it again with a dy"):
        predicted(path)


def test_sizes_and_dtypes_are_checked_at_the_call(model: Path, tmp_path: Path) -> None:
    ddf = dd.from_pandas(FRAME.assign(s="text"), npartitions=1)
    with pytest.raises(InputError, match=r'expects \(n, 4\) in input "x"'):
        ddf.infer.predict(str(model), columns=["a", "b"])
    two = str(two_inputs(tmp_path / "two.tflite"))
    with pytest.raises(InputError, match=r'"a" is int32, .* is float'):
        ddf.infer.predict(two, columns=("a", "b"))
    with pytest.raises(InputError, match="takes 2 arguments, a, b"):
        ddf.infer.predict(two, columns=["a"])


# Refusals


@pytest.mark.parametrize("data", [b"", b"<html>404</html>"])
def test_other_files_are_refused_at_once(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.tflite").write_bytes(data)
    with pytest.raises(ModelLoadError, match="fetch or save the model again"):
        recognise(tmp_path / "m.tflite")


def test_truncated_files_are_refused_at_the_call(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:300])
    with pytest.raises(ModelLoadError, match=r"truncated\?.*fetch or save the model"):
        predicted(model)
    with pytest.raises(ModelLoadError, match=r"truncated\?.*fetch or save the model"):
        loaded(model)


def test_missing_runtime_names_the_extra(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    text = r'pip install "dask-infer\[tflite\]"'
    with pytest.raises(ModelLoadError, match=text):
        loaded(model)
    with pytest.raises(ModelLoadError, match=text):
        predicted(model)


def test_it_has_no_dtype_no_methods_and_no_accelerator(model: Path) -> None:
    with pytest.raises(ValueError, match="leave out dtype="):
        predicted(model, dtype="float16")
    with pytest.raises(MissingMethodError, match="has no method predict"):
        predicted(model, method="predict")
    with pytest.raises(ModelLoadError, match=r'run on the CPU.*device="cpu"'):
        loaded(model, device="cuda")


def test_integers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = str(two_inputs(tmp_path / "two.tflite"))
    frame = pd.DataFrame({"a": [1, 2, 2**40], "b": [0, 1, 2]})
    pred = dd.from_pandas(frame, npartitions=1).infer.predict(path, columns=("a", "b"))
    with pytest.raises(InputError, match=r"a.*1099511627776"):
        pred.compute(scheduler="sync")


def test_a_graph_that_cannot_be_resized_says_so(tmp_path: Path) -> None:
    to = Writer()
    x, y = to.tensor("x", [-1, 4]), to.tensor("y", [-1, -1])
    shape = to.tensor("shape", [2], "INT32", np.array([1, 4], dtype="int32"))
    to.operator("RESHAPE", [x, shape], [y], "ReshapeOptions")
    path = to.write(tmp_path / "fixed.tflite", [x], [y])
    with pytest.raises(OutputError, match=r"does not run with inputs of shape .*, 4\)"):
        predicted(path)
    with pytest.raises(InputError, match=r"does not run with inputs of shape \(2, 4\)"):
        loaded(path).call((np.ones((2, 4)),), {})


# Runs


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_any_number_of_rows(model: Path, rows: int) -> None:
    x = np.random.default_rng(1).normal(size=(rows, 4))
    output = loaded(model).call((x,), {})
    np.testing.assert_allclose(output, x.astype("float32") @ WEIGHTS.T, atol=1e-4)


def test_inputs_by_place_and_by_name(tmp_path: Path) -> None:
    model = loaded(two_inputs(tmp_path / "two.tflite"))
    a, b = np.arange(3), np.array([4, 0, 1])
    for args, kwargs in [((a, b), {}), ((a,), {"b": b}), ((), {"b": b, "a": a})]:
        output = model.call(args, kwargs)
        assert output["s"][:, 0].tolist() == [4, 1, 3]
        assert output["e"][:, 0].tolist() == [[8, 9], [0, 1], [2, 3]]


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_predictions_are_those_of_the_graph(model: Path, scheduler: str) -> None:
    found = predicted(model, scheduler, output=["x", "y", "z"], batch_size=7)
    np.testing.assert_allclose(found.to_numpy(), WANTED, atol=1e-4)
    assert (found.dtypes == "float32").all()


@pytest.mark.parametrize("meta", [None, {c: "float32" for c in "xyz"}])
def test_predictions_on_a_cluster(client: Any, model: Path, meta: Any) -> None:
    ddf = dd.from_pandas(FRAME, npartitions=4)
    pred = ddf.infer.predict(str(model), columns=COLUMNS, output=[*"xyz"], meta=meta)
    found = pred.compute()
    np.testing.assert_allclose(found[[*"xyz"]].to_numpy(), WANTED, atol=1e-4)
    pd.testing.assert_frame_equal(found[COLUMNS], FRAME)


def test_threads_share_one_interpreter(model: Path) -> None:
    shared, found = loaded(model), {}

    def work(rows: int) -> None:
        for _ in range(20):
            found[rows] = shared.call((np.full((rows, 4), rows),), {})

    threads = [threading.Thread(target=work, args=(rows,)) for rows in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows, output in found.items():
        wanted = np.full((rows, 4), rows) @ WEIGHTS.T
        np.testing.assert_allclose(output, wanted, atol=1e-4)


def test_it_takes_the_workers_share_of_cores(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ai_edge_litert import interpreter

    given = []

    class Interpreter(interpreter.Interpreter):  # type: ignore[misc]
        def __init__(self, *args: Any, num_threads: int, **kwargs: Any) -> None:
            given.append(num_threads)
            super().__init__(*args, num_threads=num_threads, **kwargs)

    monkeypatch.setattr(interpreter, "Interpreter", Interpreter)
    spec, before = recognise(model).spec, torch.get_num_threads()
    try:
        with ReplicaCache().lease(spec, Place("local", 3, lambda: 0)) as replica:
            assert str(replica.device) == "cpu"
    finally:
        torch.set_num_threads(before)
    assert given == [3]
