"""Integers that do not fit what the model reads are refused by row: API section 3."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from distributed import Client, LocalCluster

import dask_infer  # noqa: F401
from dask_infer.errors import InputError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

BIG, HUGE = 2**32 + 5, 2**63 + 5
LIST = pd.ArrowDtype(pa.list_(pa.int64(), 2))
UNSIGNED = pd.ArrowDtype(pa.list_(pa.uint64(), 2))
PDF = pd.DataFrame(
    {
        "a": [1, 2, BIG, 4],
        "b": [1, 2, 3, 4],
        "u": np.array([1, 2, HUGE, 4], "uint64"),
        "n": pd.array([1, 2, HUGE, 4], "UInt64"),
        "o": np.array([1, 2, 2**70, 4], object),
        "l": pd.Series([[1, 1], [2, 2], [3, BIG], [4, 4]], dtype=LIST),
        "lu": pd.Series([[1, 1], [2, 2], [3, HUGE], [4, 4]], dtype=UNSIGNED),
    }
)
PDF.index = [10, 20, 30, 40]


class Same(torch.nn.Module):
    def forward(self, x):
        return x.reshape(len(x), -1)[:, 0]


class Looked(torch.nn.Module):
    """Reads nothing but integers."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(9, 1)
        torch.nn.init.ones_(self.table.weight)

    def forward(self, x):
        return x[:, 0] * self.table(x[:, 0] * 0).int()[:, 0]


class Masked(torch.nn.Module):
    def forward(self, input_ids, attention_mask):
        return input_ids[:, 0] * attention_mask[:, 0]


def graph(folder, shape, kind="INT32"):
    kind = getattr(onnx.TensorProto, kind)
    names = [
        onnx.helper.make_tensor_value_info(name, kind, ["n", *shape]) for name in "xy"
    ]
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    made = onnx.helper.make_graph([node], "same", names[:1], names[1:])
    opset = onnx.helper.make_opsetid("", 18)
    path = folder / f"same{len(shape)}.onnx"
    onnx.save(
        onnx.helper.make_model(made, opset_imports=[opset], ir_version=9), str(path)
    )
    return path


def collection(partitions=1):
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_pandas(PDF, npartitions=partitions)


def check(model, columns, *, named, values=(1, 2, None, 4), **options):
    """Under "raise" row 30 is named; under "null" only it is missing."""
    for partitions in (1, 4):
        ddf = collection(partitions)
        with pytest.raises(InputError, match=rf"{named}.*row 30 holds"):
            ddf.infer.predict(model, columns=columns, **options).compute()
        pred = ddf.infer.predict(model, columns=columns, on_error="null", **options)
        rows = pred.prediction.compute()
        found = [None if value is pd.NA else np.ravel(value)[0] for value in rows]
        assert found == list(values)


@pytest.mark.parametrize(
    ("columns", "shape"), [("a", ()), (["a"], (1,)), (["b", "a"], (2,)), ("l", (2,))]
)
def test_an_onnx_graph_of_int32_refuses_what_is_larger(columns, shape, tmp_path):
    named = 'column "l"' if columns == "l" else 'column "a"'
    check(graph(tmp_path, shape), columns, named=named)


def test_an_array_that_preprocess_made_is_refused_by_row(tmp_path):
    model = graph(tmp_path, ())
    check(model, "a", named='input "x"', preprocess=lambda frame: frame.a.to_numpy())


def test_unsigned_onnx_inputs_take_integers_that_fit(tmp_path):
    model = graph(tmp_path, (), "UINT8")
    check(model, "a", named='column "a"')
    pred = collection().infer.predict(model, columns="b").prediction.compute()
    assert pred.tolist() == [1, 2, 3, 4]
    assert pred.dtype == "uint8"


@pytest.mark.parametrize("column", ["u", "n", "lu"])
def test_unsigned_integers_beyond_int64_are_refused(column):
    check(Same(), column, named=f'column "{column}"')


def test_python_integers_beyond_int64_are_refused():
    check(Same(), "o", named='column "o"', meta="int64")


def test_stacked_integers_are_refused_by_column():
    check(Looked(), ["b", "u"], named='column "u"')


def test_ids_beyond_int64_are_refused():
    ids = pd.Series([[1], [2, 2], [HUGE], [4]], index=PDF.index)
    frame = ids.astype(pd.ArrowDtype(pa.list_(pa.uint64()))).to_frame("ids")
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(frame, npartitions=1)
    with pytest.raises(InputError, match='column "ids": row 30 holds'):
        ddf.ids.infer.predict(Masked(), meta="int64").compute()
    pred = ddf.ids.infer.predict(Masked(), meta="int64", on_error="null").compute()
    assert pred.dropna().to_dict() == {10: 1, 20: 2, 40: 4}


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_other_schedulers_refuse_the_same_row(scheduler, tmp_path):
    pred = collection(2).infer.predict(graph(tmp_path, ()), columns="a")
    with pytest.raises(InputError, match='column "a": row 30 holds 4294967301'):
        pred.compute(scheduler=scheduler)


def test_a_cluster_refuses_the_same_row_also_where_others_hold_the_model(tmp_path):
    path = graph(tmp_path, ())
    options = {"threads_per_worker": 1, "dashboard_address": None}
    ddf = collection(2)
    with (
        LocalCluster(2, resources={"GPU": 1}, **options) as cluster,
        Client(cluster),
    ):
        for resources in (None, {"GPU": 1}):
            pred = ddf.infer.predict(path, columns="a", resources=resources)
            with pytest.raises(InputError, match='column "a": row 30 holds 4294967301'):
                pred.compute()
            pred = ddf.infer.predict(
                path, columns="a", resources=resources, on_error="null"
            )
            assert pred.prediction.compute().dropna().to_dict() == {10: 1, 20: 2, 40: 4}
