from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dask_infer.batch.outputs.column_dtypes import pandas_dtype
from dask_infer.batch.outputs.parse_meta import OutputValue, parse_meta
from dask_infer.batch.outputs.resolve_outputs import outputs_from_meta
from dask_infer.batch.tensor.tensor_array import TensorDtype

FLOATS = pa.float32()


@pytest.mark.parametrize(
    "dtype, name, shape",
    [
        ("float32", "float32", ()),
        (np.float32, "float32", ()),
        (np.dtype(">f4"), "float32", ()),
        (float, "float64", ()),
        (int, "int64", ()),
        (bool, "bool", ()),
        (torch.float16, "float16", ()),
        (torch.bfloat16, "float32", ()),
        ("datetime64", "datetime64[ns]", ()),
        ("datetime64[ns, UTC]", "datetime64[ns, UTC]", ()),
        ("Int64", "Int64", ()),
        ("boolean", "boolean", ()),
        ("double[pyarrow]", "double[pyarrow]", ()),
        (str, "string", ()),
        ("str", "string", ()),
        ("string", "string", ()),
        (pd.StringDtype("pyarrow"), "string", ()),
        (pd.ArrowDtype(pa.large_string()), "string", ()),
        (object, "object", ()),
        (list, "object", ()),
        ("list", "object", ()),
        (TensorDtype("float32", (2, 3)), "float32", (2, 3)),
        ("tensor[float32, (2, 3)]", "float32", (2, 3)),
        (TensorDtype("int8", (None, 3)), "int8", (None, 3)),
        (pd.ArrowDtype(pa.list_(FLOATS, 4)), "float32", (4,)),
        (pd.ArrowDtype(pa.list_(pa.list_(FLOATS, 4), 2)), "float32", (2, 4)),
        (pd.ArrowDtype(pa.list_(FLOATS)), "float32", (None,)),
        (pd.ArrowDtype(pa.large_list(pa.list_(FLOATS, 4))), "float32", (None, 4)),
    ],
)
def test_dtypes(dtype, name, shape):
    assert parse_meta(dtype) == [OutputValue(None, name, shape)]
    assert parse_meta({"a": dtype}) == [OutputValue("a", name, shape)]


@pytest.mark.parametrize(
    "arrow",
    [
        pa.list_(pa.list_(FLOATS)),
        pa.list_(pa.string()),
        pa.list_(pa.struct([("a", pa.int64())])),
        pa.struct([("a", pa.int64())]),
        pa.map_(pa.string(), pa.int64()),
        pa.decimal128(10, 2),
        pa.binary(4),
        pa.date32(),
        pa.float16(),
        pa.timestamp("us", "UTC"),
    ],
)
def test_arrow_dtypes_are_the_dtypes_of_the_result(arrow):
    for meta in (pd.ArrowDtype(arrow), {"prediction": pd.ArrowDtype(arrow)}):
        (column,) = outputs_from_meta(meta, None, ()).columns
        assert pandas_dtype(column) == pd.ArrowDtype(arrow)
        assert pandas_dtype(column, nullable=True) == pd.ArrowDtype(arrow)


@pytest.mark.parametrize(
    "meta",
    [
        {"a": "float32", "b": str},
        [("a", "float32"), ("b", "string")],
        (("a", "float32"), ("b", "string")),
        pd.DataFrame({"a": np.zeros(1, "f4"), "b": ["x"]}),
        pd.DataFrame({"a": np.zeros(0, "f4"), "b": pd.array([], dtype="string")}),
        pd.DataFrame({"a": np.zeros(1, "f4"), "b": np.array(["x"], object)}),
        pd.DataFrame({"a": np.zeros(1, "f4"), "b": ["x"]}).dtypes,
    ],
)
def test_forms_of_several_columns(meta):
    assert parse_meta(meta) == [
        OutputValue("a", "float32"),
        OutputValue("b", "string"),
    ]


@pytest.mark.parametrize(
    "meta", [("a", "float32"), [("a", "float32")], pd.Series(dtype="f4", name="a")]
)
def test_forms_of_one_column(meta):
    assert parse_meta(meta) == [OutputValue("a", "float32")]


def test_series_without_a_name_is_a_dtype():
    assert parse_meta(pd.Series(dtype="f4")) == [OutputValue(None, "float32")]


def test_objects_that_are_no_text_stay_objects():
    frame = pd.DataFrame({"a": [[1, 2], [3]]})
    assert parse_meta(frame) == [OutputValue("a", "object")]


def test_dask_collection():
    dd = pytest.importorskip("dask.dataframe")
    frame = dd.from_pandas(pd.DataFrame({"a": [1.0]}), npartitions=1)
    assert parse_meta(frame) == [OutputValue("a", "float64")]


@pytest.mark.parametrize(
    "meta",
    [None, 7, True, "nonsense", [], {}, ("a", "b", "c"), ["f4", "f4"]],
)
def test_what_is_no_dtype_is_refused_with_examples(meta):
    with pytest.raises(ValueError, match="does not tell the output columns") as error:
        parse_meta(meta)
    assert '{"score": "float32", "label": "string"}' in str(error.value)


def test_refusal_names_the_dtype():
    with pytest.raises(ValueError, match="'float99' is no dtype"):
        parse_meta({"a": "float32", "b": "float99"})


@pytest.mark.parametrize(
    "meta", [{"s": "category"}, pd.DataFrame({"s": pd.Categorical(["a"])})]
)
def test_categories_are_refused(meta):
    with pytest.raises(ValueError, match=r'categories are not .*declare "string"'):
        parse_meta(meta)
