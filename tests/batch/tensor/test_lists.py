from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dask_infer.batch.tensor.arrow import arrow_row_shape
from dask_infer.batch.tensor.lists import (
    is_list,
    row_shape,
    to_dense,
    to_ragged,
    value_dtype,
)
from dask_infer.batch.tensor.tensor_array import TensorArray, TensorDtype
from dask_infer.errors import InputError

F32 = pa.float32()


def arrow(rows: object, kind: pa.DataType) -> pd.Series:
    return pd.Series(rows, name="emb", dtype=pd.ArrowDtype(kind))


def objects(rows: list) -> pd.Series:
    return pd.Series(rows, name="emb", dtype=object)


def tensors(rows: list) -> pd.Series:
    array = TensorArray.from_numpy(np.array(rows, "float32"))
    return pd.Series(array, name="emb")


FLAT = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
NESTED = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
FIXED = pa.list_(pa.list_(F32, 2), 2)


@pytest.mark.parametrize(
    "series",
    [
        tensors(FLAT),
        arrow(FLAT, pa.list_(F32, 3)),
        arrow(FLAT, pa.list_(F32)),
        arrow(FLAT, pa.large_list(F32)),
        objects(FLAT),
        objects([tuple(row) for row in FLAT]),
        objects([np.array(row, "float32") for row in FLAT]),
    ],
    ids=["tensor", "fixed", "list", "large", "lists", "tuples", "arrays"],
)
def test_flat_lists_of_any_kind_are_stacked(series: pd.Series) -> None:  # SP-33
    assert to_dense(series).tolist() == FLAT
    assert to_dense(series.iloc[1:]).tolist() == FLAT[1:]
    assert to_dense(series, (3, 1)).shape == (2, 3, 1)


@pytest.mark.parametrize(
    "series",
    [
        tensors(NESTED),
        arrow(NESTED, FIXED),
        arrow(NESTED, pa.list_(pa.list_(F32))),
        arrow(NESTED, pa.list_(pa.list_(F32, 2))),
        objects(NESTED),
        objects([np.array(row) for row in NESTED]),
        pd.Series(pa.array(NESTED, FIXED).to_pandas(), name="emb"),
        objects([[np.array(inner) for inner in row] for row in NESTED]),
    ],
    ids=["tensor", "fixed", "lists", "mixed", "objects", "arrays", "parquet", "inner"],
)
def test_nested_lists_of_any_kind_are_stacked(series: pd.Series) -> None:
    assert to_dense(series).tolist() == NESTED
    assert to_dense(series.iloc[1:]).tolist() == NESTED[1:]
    assert to_dense(series, (4,)).shape == (2, 4)


@pytest.mark.parametrize("kind", [pa.list_(F32, 3), pa.list_(F32)], ids=str)
def test_arrow_lists_are_stacked_without_a_copy(kind: pa.DataType) -> None:
    values = pa.array(FLAT, kind)
    series = pd.Series(pd.arrays.ArrowExtensionArray(values), copy=False)
    memory = values.values.to_numpy()
    assert np.shares_memory(to_dense(series), memory)
    assert to_dense(series).dtype == "float32"


def test_arrow_tensors_of_other_packages_are_read() -> None:
    values = np.arange(12, dtype="float32").reshape(3, 2, 2)
    array = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    series = pd.Series(pd.arrays.ArrowExtensionArray(array), name="emb")
    assert is_list(series.dtype)
    assert row_shape(series.dtype) == (2, 2)
    np.testing.assert_array_equal(to_dense(series), values)


def test_values_keep_their_dtype() -> None:
    assert to_dense(arrow([[1, 2]], pa.list_(pa.uint8()))).dtype == "uint8"
    assert to_dense(arrow([[True, False]], pa.list_(pa.bool_()))).dtype == bool
    assert to_dense(objects([np.zeros(2, "float16")])).dtype == "float16"
    assert to_dense(objects([[1, 2.5]])).tolist() == [[1.0, 2.5]]


def test_flat_rows_are_folded_into_a_shape() -> None:
    series = tensors(np.arange(2 * 784).reshape(2, 784))
    dense = to_dense(series, (1, 28, 28))
    assert dense.shape == (2, 1, 28, 28)
    assert dense[1, 0, 0, 1] == 785
    assert to_dense(series, (None, 28)).shape == (2, 28, 28)


def test_a_shape_of_another_size_names_row_and_numbers() -> None:
    message = r'column "emb": row b holds 783 values where shape \(28, 28\) takes 784'
    series = objects([np.zeros(784), np.zeros(783)]).set_axis(["a", "b"])
    with pytest.raises(InputError, match=message):
        to_dense(series, (28, 28))
    with pytest.raises(InputError, match=r"row 0 holds 3 values .* takes 4"):
        to_dense(arrow(FLAT, pa.list_(F32, 3)), (2, 2))
    with pytest.raises(InputError, match="row 0 holds 3 values"):
        to_dense(arrow(FLAT, pa.list_(F32, 3)), (None, 2))


RAGGED = [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize(
    "series",
    [
        arrow(RAGGED, pa.list_(pa.int64())),
        objects(RAGGED),
        objects([np.array(row) for row in RAGGED]),
        pd.Series(RAGGED, name="emb", dtype=TensorDtype("int64", (None,))),
    ],
    ids=["arrow", "lists", "arrays", "tensor"],
)
def test_ragged_rows_name_the_row_and_both_lengths(series: pd.Series) -> None:  # SP-32
    message = 'column "emb": row 30 holds 1 values where the rows before it hold 2; pad'
    with pytest.raises(InputError, match=message):
        to_dense(series.set_axis([10, 20, 30]))


def test_arrays_of_different_inner_shape_name_the_row() -> None:
    series = objects([np.zeros((2, 2)), None, np.zeros((2, 3))])
    with pytest.raises(InputError, match=r"row 2 has shape \(2, 3\) .* \(2, 2\)"):
        to_dense(series)


@pytest.mark.parametrize("kind", [pa.list_(pa.list_(F32)), None], ids=str)
def test_inner_lists_of_different_lengths_are_refused(kind) -> None:
    rows = [[[1.0]], None, [[1.0], [2.0, 3.0]]]
    series = objects(rows) if kind is None else arrow(rows, kind)
    with pytest.raises(InputError, match="row 2 holds an inner list of 2 values"):
        to_dense(series)


MISSING_FIRST = [None, [1, 2], None, [3, 4]]


@pytest.mark.parametrize(
    "series",
    [
        arrow(MISSING_FIRST, pa.list_(F32, 2)),
        arrow(MISSING_FIRST, pa.list_(F32)),
        objects([None if r is None else np.array(r, "f4") for r in MISSING_FIRST]),
        objects(
            [np.nan if r is None else [float(x) for x in r] for r in MISSING_FIRST]
        ),
        pd.Series(MISSING_FIRST, name="emb", dtype=TensorDtype("float32", (2,))),
    ],
    ids=["fixed", "list", "arrays", "lists", "tensor"],
)
def test_missing_rows_are_nan(series: pd.Series) -> None:  # SP-31
    dense = to_dense(series)
    assert dense.shape == (4, 2)
    assert np.isnan(dense[[0, 2]]).all()
    assert dense[[1, 3]].tolist() == [[1, 2], [3, 4]]
    assert np.isnan(to_dense(series, (1, 2))[0]).all()


@pytest.mark.parametrize(
    "series",
    [
        arrow(MISSING_FIRST, pa.list_(pa.int8(), 2)),
        arrow(MISSING_FIRST, pa.list_(pa.bool_())),
        objects(MISSING_FIRST),
    ],
    ids=["fixed", "bool", "lists"],
)
def test_a_missing_row_of_integers_is_named(series: pd.Series) -> None:
    with pytest.raises(InputError, match=r"row 0 is missing.*has no NaN"):
        to_dense(series)


@pytest.mark.parametrize("kind", [pa.list_(F32, 2), pa.list_(F32), None], ids=str)
def test_a_missing_value_inside_a_row_is_nan(kind) -> None:
    rows = [[1.0, None], None, [3.0, 4.0]]
    series = objects(rows) if kind is None else arrow(rows, kind)
    dense = to_dense(series)
    assert np.isnan(dense[0, 1])
    assert np.isnan(dense[1]).all()
    assert dense[2].tolist() == [3, 4]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64(), 2), pa.list_(pa.int64())], ids=str
)
def test_a_missing_integer_inside_a_row_names_the_row(kind: pa.DataType) -> None:
    series = arrow([None, [1, 2], [3, None]], kind)
    with pytest.raises(InputError, match="row 2 has a missing value inside"):
        to_dense(series)


@pytest.mark.parametrize(
    "series, shape, expected",
    [
        (tensors(NESTED), None, (0, 2, 2)),
        (arrow(FLAT, pa.list_(F32, 3)), None, (0, 3)),
        (arrow(FLAT, pa.list_(F32)), None, (0, 0)),
        (objects([]), None, (0, 0)),
        (objects([]), (3, 2), (0, 3, 2)),
        (arrow(FLAT, pa.list_(F32)), (3,), (0, 3)),
        (pd.Series([], dtype=TensorDtype("int64", (None, 4))), None, (0, 0, 4)),
    ],
)
def test_no_rows_have_the_shape_that_is_known(series, shape, expected) -> None:  # DI-11
    assert to_dense(series.iloc[:0], shape).shape == expected


def test_rows_that_are_all_missing_take_the_shape_given() -> None:
    assert to_dense(objects([None, None]), (2, 2)).shape == (2, 2, 2)
    assert np.isnan(to_dense(objects([None, None]), (3,))).all()


@pytest.mark.parametrize("dtype", [object, "str", "string"])
def test_lists_turned_into_text_name_the_setting_of_dask(dtype: object) -> None:
    series = pd.Series(["[1, 2, 3]", "[4, 5, 6]"], name="emb", dtype=dtype)
    message = r'column "emb": row 0 holds lists .* "dataframe\.convert-string"'
    with pytest.raises(InputError, match=message):
        to_dense(series)


@pytest.mark.parametrize(
    "series, message",
    [
        (objects(["good"]), "row 0 holds text, not a list of numbers"),
        (objects([[1], "good"]), "row 1 holds text"),
        (objects([np.ones(2), 3]), "row 1 holds a int, not a list"),
        (objects([b"12"]), "row 0 holds a bytes"),
        (objects([["a", "b"]]), "holds lists of string"),
        (objects([np.array(["a"])]), "holds arrays of <U1"),
        (pd.Series([1.0], name="emb"), "holds float64, not lists or arrays"),
        (arrow([["a"]], pa.list_(pa.string())), "holds lists of string"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_list_of_numbers_is_named(series, message) -> None:
    with pytest.raises(InputError, match=f'^column "emb":? {message}'):
        to_dense(series)


@pytest.mark.parametrize(
    "series",
    [
        arrow(RAGGED, pa.list_(pa.int64())),
        objects(RAGGED),
        pd.Series(RAGGED, name="emb", dtype=TensorDtype("int64", (None,))),
    ],
    ids=["arrow", "lists", "tensor"],
)
def test_ragged_rows_are_joined(series: pd.Series) -> None:
    rows = to_ragged(series)
    values, offsets = rows.values, rows.offsets
    assert values.tolist() == [1, 2, 3, 4, 5]
    assert offsets.tolist() == [0, 2, 4, 5]
    rows = to_ragged(series.iloc[1:])
    values, offsets = rows.values, rows.offsets
    assert values.tolist() == [3, 4, 5]
    assert offsets.tolist() == [0, 2, 3]


def test_even_rows_are_joined_too_and_missing_ones_are_named() -> None:
    rows = to_ragged(tensors(NESTED))
    values, offsets = rows.values, rows.offsets
    assert values.shape == (4, 2)
    assert offsets.tolist() == [0, 2, 4]
    with pytest.raises(InputError, match='column "emb": row 0 is missing'):
        to_ragged(objects(MISSING_FIRST))


@pytest.mark.parametrize(
    "dtype, shape, value",
    [
        (TensorDtype("float32", (2, 3)), (2, 3), "float32"),
        (TensorDtype("int8", (None, 3)), (None, 3), "int8"),
        (pd.ArrowDtype(FIXED), (2, 2), "float32"),
        (pd.ArrowDtype(pa.list_(F32)), None, "float32"),
        (pd.ArrowDtype(pa.list_(pa.list_(F32), 2)), None, "float32"),
        (pd.ArrowDtype(pa.list_(pa.string())), None, None),
    ],
    ids=str,
)
def test_dtypes_show_shape_and_values(dtype, shape, value) -> None:
    assert is_list(dtype)
    assert row_shape(dtype) == shape
    assert value_dtype(dtype) == (None if value is None else np.dtype(value))


@pytest.mark.parametrize(
    "dtype", [np.dtype("float32"), np.dtype(object), pd.ArrowDtype(F32)], ids=str
)
def test_other_dtypes_show_nothing(dtype) -> None:
    assert not is_list(dtype)
    assert row_shape(dtype) is None
    assert value_dtype(dtype) is None


def test_schema_types_show_the_shape_where_it_is_fixed() -> None:
    assert arrow_row_shape(FIXED) == (2, 2)
    assert arrow_row_shape(pa.list_(F32)) is None
    assert arrow_row_shape(F32) is None
    assert arrow_row_shape(pa.fixed_shape_tensor(F32, (4, 5))) == (4, 5)
