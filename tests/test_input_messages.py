"""What a user passes is taken, or refused in words that help: API section 3."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

import dask_infer
from dask_infer.errors import InputError, ModelLoadError, OutputError

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
        (torch.nn.Linear(1, 1), "a", r'gives \(n,\).*pass columns=\["a"\] for'),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"call_kwargs": {1: 1}}, "call_kwargs={1: ...}: keys are names"),
        ({"resources": {1: 1}}, "resources={1: ...}: keys are names"),
        ({"timeout": [1]}, r"timeout=\[1\]: pass seconds"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        DDF.infer.predict(LINEAR, columns=["a", "b"], **options)


def test_sources_of_a_wrong_kind_are_refused_with_the_remedy():
    source = dask_infer.ModelSource
    with pytest.raises(TypeError, match="a path, not Linear; pass the model itself"):
        source.from_path(LINEAR)
    with pytest.raises(ValueError, match="trust='no': pass True or False"):
        source.from_path("model.pt", trust="no")
    with pytest.raises(TypeError, match=r"weights= takes a path, .*save_file"):
        source.from_factory(torch.nn.Linear, 2, 1, weights=LINEAR.state_dict())


class Nothing:
    pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LINEAR.state_dict(), r"weights only; pass their module.*load_state_dict"),
        (torch.nn.ModuleList([LINEAR]), r"a ModuleList has no forward.*nn.Sequential"),
        (dask_infer.ModelSource.from_factory(LINEAR), r"not a Linear; pass .*as it is"),
        (dask_infer.ModelSource.from_estimator(LINEAR), "name another by method="),
    ],
)
def test_what_is_no_model_is_refused_at_the_call(model, message):
    for meta in (None, "float32"):
        with pytest.raises(ModelLoadError, match=message):
            DDF.infer.predict(model, columns=["a", "b"], meta=meta)


def test_a_class_of_what_cannot_be_called_says_what_it_lacks():
    pred = DDF.infer.predict(Nothing, columns=["a", "b"], meta="float32")
    with pytest.raises(ModelLoadError, match=r"builds a Nothing.*__call__\(batch\)"):
        pred.compute(scheduler="sync")


class Returns(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x.sum() if self.value == "sum" else x.no_such_attribute


def test_words_of_torchs_fake_tensors_are_not_shown():
    for value, said in (("sum", r"a tensor of shape \(\)"), ("no", "'Tensor' object")):
        with pytest.raises(OutputError, match=said) as caught:
            DDF.infer.predict(Returns(value), columns=["a", "b"])
        assert "FakeTensor" not in str(caught.value)


def test_nothing_returned_says_what_to_return():
    pred = DDF.infer.predict(lambda x: None, columns=["a", "b"], meta="float32")
    with pytest.raises(OutputError, match=r"a NoneType\); return one value for each"):
        pred.compute(scheduler="sync")


def test_errors_of_rows_say_of_which_model_they_are():
    first = DDF.infer.predict(LINEAR, columns=["a", "b"], output="p")
    pred = first.infer.predict(rows, columns="p", output="q", meta="int64")
    with pytest.raises(OutputError, match=r'^model "rows": output column "q"'):
        pred.compute(scheduler="sync")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("A", 'did you mean "a"'),
        ([["a", "b"]], r"\['a', 'b'\] is neither a column nor a list of columns; pass"),
        (DDF["a"], r"data \(Series\) is neither a column"),
        (PDF[["a"]], r"data \(DataFrame\) is neither a column"),
        (len, "len> is neither a column"),
    ],
)
def test_what_names_no_column_is_told_from_a_misspelt_one(columns, message):
    with pytest.raises(InputError, match=message):
        DDF.infer.predict(LINEAR, columns=columns)


def test_refused_dtypes_and_shapes_name_the_columns():
    flags = DDF.assign(flag=DDF.a > 1)
    with pytest.raises(InputError, match=r'1, of "flag", is .*astype\({"flag": "fl'):
        flags.infer.predict(LINEAR, columns="flag")
    with pytest.raises(InputError, match=r'argument 1, of "a", "b", is \(n, 2\)'):
        DDF.infer.predict(torch.nn.Linear(3, 1), columns=["a", "b"])
    with pytest.raises(InputError, match="pass a list of 2 columns"):
        DDF.infer.predict(LINEAR, columns="a")


def test_dates_beside_numbers_are_refused_at_the_call():
    with pytest.raises(InputError, match=r'float64, datetime64.* columns=\("a", "when'):
        DDF.infer.predict(rows, columns=["a", "when"], meta="float64")
    twice = DDF.assign(then=DDF.when)
    pred = twice.infer.predict(rows, columns=["when", "then"], meta="float64")
    assert len(pred.compute(scheduler="sync")) == 2


def test_numbers_for_a_model_of_texts_are_refused_at_the_call(minilm):
    for meta in (None, "float32"):
        with pytest.raises(InputError, match=r'texts or .*column "a" holds one number'):
            DDF.infer.predict(minilm, columns="a", meta=meta)


def test_an_index_is_a_column_too():
    made = DDF.index.infer.predict(torch.nn.Embedding(2, 1), output="e")
    result = made.compute(scheduler="sync")
    assert result.name == "e" and result.index.equals(PDF.index)
