from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer.batch.outputs.column_dtypes import STRING, output_meta
from dask_infer.batch.outputs.resolve_outputs import (
    check_names,
    outputs_from_estimator,
    outputs_from_meta,
    resolve_outputs,
)
from dask_infer.batch.tensor.tensor_array import TensorDtype
from dask_infer.errors import OutputError
from dask_infer.spec import OutputColumn, Outputs

ROWS, TOKENS = 6, 11


def traced(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device="meta")


def resolve(output, names=None, kept=(), text=False):
    return resolve_outputs(
        output, rows=ROWS, tokens=TOKENS, output=names, kept=kept, text=text
    )


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((ROWS,), ()),
        ((ROWS, 1), ()),
        ((ROWS, 3), (3,)),
        ((ROWS, 3, 4), (3, 4)),
        ((ROWS, 1, 4), (1, 4)),
        ((ROWS, TOKENS), (TOKENS,)),
    ],
)
def test_shape_of_one_row(shape, expected):  # XG-08
    for output in (traced(*shape), {"field": traced(*shape)}):
        (column,) = resolve(output).columns
        assert column.shape == expected


@pytest.mark.parametrize(
    "shape, expected",
    [
        ((ROWS, TOKENS), (None,)),
        ((ROWS, TOKENS, 3), (None, 3)),
        ((ROWS, 3, TOKENS), (3, TOKENS)),
        ((ROWS, 3), (3,)),
    ],
)
def test_padded_axis_of_text_is_ragged(shape, expected):
    (column,) = resolve(traced(*shape), text=True).columns
    assert column.shape == expected


@pytest.mark.parametrize(
    "dtype, name",
    [
        (torch.float32, "float32"),
        (torch.float64, "float64"),
        (torch.float16, "float16"),
        (torch.bfloat16, "float32"),
        (torch.float8_e4m3fn, "float32"),
        (torch.int64, "int64"),
        (torch.uint8, "uint8"),
        (torch.bool, "bool"),
        (torch.complex64, "complex64"),
    ],
)
def test_dtype_follows_the_tensor(dtype, name):
    (column,) = resolve(traced(ROWS, dtype=dtype)).columns
    assert column.dtype == name


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        output = torch.nn.Linear(3, 2)(torch.zeros(ROWS, 3))
    (column,) = resolve(output).columns
    assert (column.name, column.shape) == ("prediction", (2,))


def test_lists_of_a_module_are_no_columns():
    output = {"logits": traced(ROWS, 2), "names": ["a", "b"]}
    assert resolve(output).names == ("logits",)


@pytest.mark.parametrize(
    "output, kind", [(None, "NoneType"), (3, "int"), ({"loss": traced()}, "dict")]
)
def test_output_without_rows_is_refused(output, kind):
    with pytest.raises(OutputError, match=f"no tensor .*of type {kind}"):
        resolve(output)


def test_wrong_number_of_rows_is_refused():
    with pytest.raises(OutputError, match="returns 5 rows for 6 in the output"):
        resolve(traced(5, 2))


def test_name_of_a_kept_column_is_refused():  # ON-10
    with pytest.raises(ValueError, match='the input column "x"') as error:
        resolve(traced(ROWS), "x", kept=["x", "y"])
    assert "output=" in str(error.value)
    assert "keep=" in str(error.value)
    with pytest.raises(ValueError, match='"prediction" has the name of the input'):
        outputs_from_meta("float32", None, ["prediction"])


def test_name_of_the_error_column_is_refused():
    with pytest.raises(ValueError, match="infer_error"):
        resolve(traced(ROWS), "infer_error")


def test_quarantine_needs_its_column_free():
    outputs = resolve(traced(ROWS))
    assert check_names(outputs, ["infer_error"]) is outputs
    with pytest.raises(ValueError, match="which the input has already"):
        check_names(outputs, ["infer_error"], quarantine=True)


def test_fields_that_share_a_name_are_refused():
    outputs = Outputs((OutputColumn("a", "float32"), OutputColumn("a", "int64")))
    with pytest.raises(ValueError, match='two outputs are named "a"'):
        check_names(outputs, [])


def test_meta_passes_over_kept_columns_and_the_error_column():
    meta = {"x": "int64", "score": "float32", "infer_error": "string"}
    outputs = outputs_from_meta(meta, None, kept=["x"])
    assert (outputs.names, outputs.declared) == (("score",), True)


def test_meta_passes_over_kept_columns_of_any_dtype():
    frame = pd.DataFrame({"x": pd.Categorical(["u"]), "score": [0.5]})
    assert outputs_from_meta(frame.head(0), None, kept=["x"]).names == ("score",)


def test_meta_of_kept_columns_alone_is_refused():
    with pytest.raises(ValueError, match="names no output column"):
        outputs_from_meta({"x": "int64"}, None, kept=["x"])


@pytest.mark.parametrize(
    "described, output, expected",
    [
        ([(None, np.float64, ())], None, [("prediction", "float64", (), None)]),
        ([(None, "string", ())], "label", [("label", "string", (), None)]),
        ([(None, np.dtype("<U4"), ())], None, [("prediction", "string", (), None)]),
        ([(None, "float64", (1,))], None, [("prediction", "float64", (), None)]),
        ([(None, "float64", (2,))], None, [("prediction", "float64", (2,), None)]),
        (
            [(None, "float64", (2,))],
            ["n", "p"],
            [("n", "float64", (), 0), ("p", "float64", (), 1)],
        ),
        (
            [(None, "float64", ()), (None, "float64", ())],
            ["mean", "std"],
            [("mean", "float64", (), None), ("std", "float64", (), None)],
        ),
        (
            [("a", "float64", ()), ("b", "int64", ())],
            None,
            [("a", "float64", (), None), ("b", "int64", (), None)],
        ),
    ],
)
def test_estimator(described, output, expected):  # DM-01
    outputs = outputs_from_estimator(described, output, ())
    found = [(c.name, c.dtype, c.shape, c.index) for c in outputs.columns]
    assert found == expected


def test_meta_has_the_dtypes_of_the_result():
    outputs = outputs_from_meta(
        {
            "f": "float32",
            "i": "int32",
            "b": "bool",
            "s": str,
            "v": "tensor[int8, (2,)]",
        },
        None,
        (),
    )
    plain = {name: series.dtype for name, series in output_meta(outputs).items()}
    tensor = TensorDtype("int8", (2,))
    assert plain == {
        "f": np.dtype("float32"),
        "i": np.dtype("int32"),
        "b": np.dtype(bool),
        "s": STRING,
        "v": tensor,
    }
    nullable = output_meta(outputs, nullable=True)
    assert {name: series.dtype for name, series in nullable.items()} == {
        "f": np.dtype("float32"),
        "i": pd.Int32Dtype(),
        "b": pd.BooleanDtype(),
        "s": STRING,
        "v": tensor,
    }
    assert all(len(series) == 0 for series in nullable.values())
    assert nullable["f"].name == "f"


def test_strings_are_those_of_dask():
    dd = pytest.importorskip("dask.dataframe")
    frame = dd.from_pandas(pd.DataFrame({"a": ["x"]}), npartitions=1)
    (series,) = output_meta(outputs_from_meta(str, None, ())).values()
    assert series.dtype == frame.dtypes["a"]
