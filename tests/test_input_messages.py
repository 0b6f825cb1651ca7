"""What a user passes is taken, or refused in words that help: API section 3."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

import dask_infer  # noqa: F401
from dask_infer.errors import InputError, OutputError

PDF = pd.DataFrame(
    {
        "a": [1.0, 2.0],
        "b": [3.0, 4.0],
        "when": pd.to_datetime(["2020-01-01", "2020-01-02"]),
        "note": ["x", "y"],
    }
)
DDF = dd.from_pandas(PDF, npartitions=1)
LINEAR = torch.nn.Linear(2, 1)


def rows(x):
    return np.ones(len(x))


def pair(x, y):
    return x + y


@pytest.mark.parametrize(
    "dtype", ["float64", torch.float64, np.float64, np.dtype("float64")]
)
def test_dtypes_of_torch_and_numpy_are_taken(dtype):
    pred = DDF.infer.predict(LINEAR, columns=["a", "b"], dtype=dtype)
    assert pred.prediction.compute().dtype == "float64"


@pytest.mark.parametrize("dtype", [torch.int64, np.int64, torch.complex64])
def test_other_dtypes_are_refused_by_name(dtype):
    name = "complex64" if dtype is torch.complex64 else "int64"
    with pytest.raises(ValueError, match=f"dtype='{name}': pass one of 'float16'"):
        DDF.infer.predict(LINEAR, columns=["a", "b"], dtype=dtype)


def test_devices_of_torch_are_taken():
    pred = DDF.infer.predict(LINEAR, columns=["a", "b"], device=torch.device("cpu"))
    assert len(pred.prediction.compute()) == 2
    with pytest.raises(ValueError, match="device='meta'"):
        DDF.infer.predict(LINEAR, columns=["a", "b"], device=torch.device("meta"))


def test_columns_of_several_levels_are_refused_with_the_remedy():
    labels = pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")])
    ddf = dd.from_pandas(pd.DataFrame(np.ones((3, 2)), columns=labels), npartitions=1)
    with pytest.raises(InputError, match=r"2 levels; .*ddf\.columns ="):
        ddf.infer.predict(LINEAR)
    with pytest.raises(InputError, match="2 levels"):
        ddf.infer.predict(rows, columns=[("a", "x")], meta="float64")
    with pytest.raises(InputError, match="2 levels"):
        ddf[("a", "x")].infer.predict(rows, meta="float64")
    ddf.columns = ["_".join(map(str, c)) for c in ddf.columns]
    assert len(ddf.infer.predict(LINEAR).compute()) == 3


@pytest.mark.parametrize(
    ("model", "columns", "message"),
    [
        (LINEAR, "when", r"dates or times; pass preprocess= to make"),
        (LINEAR, None, r'"when" holds dates.*; pass columns=\[...\] or preprocess='),
        (LINEAR, "note", r'"note" holds text; pass tokenizer=; if it held lists'),
        (rows, ["a", "note"], r'"note" holds text; pass columns="note", or columns='),
        (rows, ["a", "when"], r'stacked .* pass them .*columns=\("a", "when"\) say'),
        (rows, ("a", "b"), r'rows\(x\): too many .* columns give 2.*\("a", "b"\) are'),
        (rows, {"y": "a"}, r"rows\(x\): missing a required argument: 'x'|unexpected"),
        (pair, ["a", "b"], r'missing a required argument: .y.*\["a", "b"\] is one'),
        (LINEAR, ("a", "b"), r'too many .*\["a", "b"\] is one .*\("a", "b"\) are two'),
        (torch.nn.Linear(1, 1), "a", r'gives \(n,\).*pass columns=\["x"\] for'),
    ],
)
def test_messages_name_what_helps(model, columns, message):
    with pytest.raises(InputError, match=message):
        options = {} if isinstance(model, torch.nn.Module) else {"meta": "float64"}
        DDF.infer.predict(model, columns=columns, **options).compute()


@pytest.mark.parametrize("columns", [["a", "x"], (["a", "x"],)])
def test_a_list_column_among_a_list_of_columns_is_refused(columns, tmp_path):
    frame = PDF[["a"]].assign(x=[np.ones(2), np.ones(2)])
    frame.to_parquet(tmp_path / "lists.parquet")
    ddf = dd.read_parquet(tmp_path)
    for model, meta in ((LINEAR, None), (LINEAR, "float32"), (rows, "float64")):
        with pytest.raises(InputError, match=r'"x" holds lists.*; pass columns="x"'):
            ddf.infer.predict(model, columns=columns, meta=meta).compute()


def test_lists_that_preprocess_changes_are_named_once():
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(pd.DataFrame({"x": [[1.0, 2.0]]}), npartitions=1)
    with pytest.raises(OutputError) as caught:
        ddf.infer.predict(LINEAR, columns="x", preprocess=lambda frame: frame)
    assert str(caught.value).count("row shape of column") == 1
