from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dask_infer.batch.tensor.tensor_array import TensorArray, TensorDtype
from dask_infer.errors import InputError

VALUE_DTYPES = [
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bool"),
]


def images(n: int = 4) -> np.ndarray:
    return np.arange(n * 6, dtype="float32").reshape(n, 2, 3)


def column(n: int = 4) -> pd.Series:
    return pd.Series(TensorArray.from_numpy(images(n)), name="image", copy=False)


def tokens() -> TensorArray:
    """Rows [0, 1], [], [2, 3, 4]."""
    return TensorArray.from_ragged(np.arange(5), np.array([0, 2, 2, 5]))


def test_values_are_taken_and_given_back_without_a_copy() -> None:
    values = images()
    array = TensorArray.from_numpy(values)
    assert np.shares_memory(array.to_dense(), values)
    assert np.shares_memory(array.to_dense("float32"), values)
    assert np.shares_memory(array[2], values)


def test_a_slice_of_a_series_is_dense_without_a_copy() -> None:
    values = images()
    series = pd.Series(TensorArray.from_numpy(values), copy=False)
    dense = series.iloc[1:3].array.to_dense()
    assert np.shares_memory(dense, values)
    np.testing.assert_array_equal(dense, values[1:3])


def test_arrow_takes_the_memory_and_gives_it_back() -> None:
    values = images()
    arrow = pa.array(TensorArray.from_numpy(values))
    assert arrow.type == pa.list_(pa.list_(pa.float32(), 3), 2)
    assert arrow.to_pylist() == values.tolist()
    back = TensorDtype("float32", (2, 3)).__from_arrow__(arrow.slice(1))
    assert np.shares_memory(back.to_dense(), values)
    np.testing.assert_array_equal(back.to_dense(), values[1:])


@pytest.mark.parametrize("value", VALUE_DTYPES)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (None,), (None, 2)], ids=str)
def test_every_dtype_and_shape_survives_arrow(value: str, shape: tuple) -> None:
    dtype = TensorDtype(value, shape)
    array = TensorArray.synthetic(dtype).take([0, -1, 1], allow_fill=True)
    arrow = pa.array(array)
    assert arrow.type == dtype.arrow
    back = dtype.__from_arrow__(pa.chunked_array([arrow[:1], arrow[1:]]))
    assert back.dtype == dtype
    assert back.equals(array)
    assert back.isna().tolist() == [False, True, False]


def test_dtype_says_what_it_holds_and_is_made_from_it() -> None:
    dtype = TensorDtype("float32", (384,))
    assert repr(dtype) == f"{dtype}" == dtype.name == "tensor[float32, (384,)]"
    assert pd.api.types.pandas_dtype("tensor[float32, (384,)]") == dtype
    ragged = TensorDtype.construct_from_string("tensor[int64, (None, 2)]")
    assert ragged == TensorDtype("int64", (None, 2))
    assert "tensor[float32, (2, 3)]" in repr(column())


def test_dtype_is_object_to_parquet_alone() -> None:
    dtype = TensorDtype("float32", (384,))
    assert str(dtype) == "object"  # what pyarrow writes, and any reader knows
    assert dtype != "object"
    assert dtype != np.dtype(object)
    assert np.dtype(object) != dtype
    assert not pd.api.types.is_string_dtype(dtype)
    assert not pd.api.types.is_object_dtype(dtype)


@pytest.mark.parametrize(
    "value, shape, error",
    [
        ("complex64", (3,), TypeError),
        ("str", (3,), TypeError),
        ("float32", (), ValueError),
        ("float32", (3, None), ValueError),
    ],
)
def test_dtype_refuses_what_is_no_row_of_numbers(value, shape, error) -> None:
    with pytest.raises(error):
        TensorDtype(value, shape)


def test_elements_are_arrays_of_the_row_shape() -> None:
    series = column()
    np.testing.assert_array_equal(series[1], images()[1])
    assert tokens()[2].tolist() == [2, 3, 4]
    assert [row.tolist() for row in tokens()] == [[0, 1], [], [2, 3, 4]]
    with pytest.raises(IndexError):
        tokens()[3]


def test_missing_rows_are_na_and_nan_when_dense() -> None:
    missing = np.array([True, False, False, True])
    array = TensorArray.from_numpy(images(), missing)
    assert array.isna().tolist() == missing.tolist()
    assert array[0] is pd.NA
    assert np.isnan(array.to_dense()[missing]).all()
    np.testing.assert_array_equal(array.to_dense()[1:3], images()[1:3])


def test_a_missing_integer_row_cannot_be_dense() -> None:
    array = TensorArray.from_numpy(np.ones((2, 3), int), np.array([False, True]))
    with pytest.raises(InputError, match="row 1 is missing, and int64 has no NaN"):
        array.to_dense()


def test_ragged_rows_are_dense_only_where_lengths_agree() -> None:
    with pytest.raises(InputError, match=r"row 1 holds 0 values .* hold 2"):
        tokens().to_dense()
    even = TensorArray.from_ragged(np.arange(6), np.array([0, 2, 4, 6]))
    assert even.to_dense().tolist() == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("offsets", [[0, 3, 2, 5], [0, 6], [-1, 5]], ids=str)
def test_offsets_that_do_not_rise_are_refused(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must rise"):
        TensorArray.from_ragged(np.arange(5), np.array(offsets))


def test_take_and_filter_follow_rows() -> None:
    array = tokens()
    assert [list(row) for row in array[[2, 0, -1]]] == [[2, 3, 4], [0, 1], [2, 3, 4]]
    assert len(array[np.array([True, False, True])]) == 2
    reversed_ = column()[::-1].array.to_dense()
    np.testing.assert_array_equal(reversed_, images()[::-1])
    filled = array.take([1, -1], allow_fill=True)
    assert filled.isna().tolist() == [False, True]


@pytest.mark.parametrize("array", [TensorArray.from_numpy(images(3)), tokens()])
def test_an_empty_array_takes_missing_rows(array: TensorArray) -> None:
    none = array[:0]
    assert none.take([-1, -1], allow_fill=True).isna().all()
    assert none.dtype == array.dtype
    with pytest.raises(IndexError):
        none.take([0])


def test_assignment_changes_rows_but_never_the_memory_given() -> None:
    values = images()
    array = TensorArray.from_numpy(values)
    array[0] = np.full((2, 3), 9)
    array[np.array([False, True, False, False])] = pd.NA
    array[2:] = [np.zeros((2, 3)), np.ones((2, 3))]
    assert array[0].max() == array[0].min() == 9
    assert array.isna().tolist() == [False, True, False, False]
    assert array[3].sum() == 6
    np.testing.assert_array_equal(values, images())


def test_assignment_to_a_frame_takes_a_row_of_another_length() -> None:
    series = pd.Series(tokens())
    series[1] = np.array([7, 7])
    series[0] = None
    assert series.isna().tolist() == [True, False, False]
    assert series[1].tolist() == [7, 7]
    with pytest.raises(ValueError, match="2 rows cannot be assigned to 3"):
        series.array[:] = [[1], [2]]


def test_concatenation_keeps_the_dtype() -> None:
    both = pd.concat([column(), column(2)], ignore_index=True)
    assert both.dtype == column().dtype
    np.testing.assert_array_equal(both[5], images()[1])
    short = TensorArray.from_numpy(np.ones((1, 2), "float32"))
    mixed = pd.concat([pd.Series(tokens()), pd.Series(short)])
    assert mixed.dtype == TensorDtype("float64", (None,))


def test_concatenation_with_frames_without_rows_or_without_the_column() -> None:
    frame = column().to_frame()
    assert pd.concat([frame.iloc[:0], frame]).image.dtype == frame.image.dtype
    other = pd.concat([pd.DataFrame({"id": [1]}), frame])
    assert other.image.dtype == frame.image.dtype
    assert other.image.isna().tolist() == [True, *[False] * 4]


def test_a_row_of_a_frame_may_hold_text_beside_arrays() -> None:
    frame = pd.DataFrame(
        {"image": column(), "note": pd.Series(["a"] * 4, dtype=object)}
    )
    row = frame.iloc[1]
    assert row["note"] == "a"
    np.testing.assert_array_equal(row["image"], images()[1])


def test_equality_is_by_row() -> None:
    left, right = column(), column()
    right[2] = np.zeros((2, 3))
    right[3] = None
    assert (left == right).tolist() == [True, True, False, False]
    assert (left != right).tolist() == [False, False, True, True]
    assert (left.array == images()[1]).tolist() == [False, True, False, False]
    other = TensorArray.from_ragged(np.arange(5), np.array([0, 2, 3, 5]))
    assert (tokens() == other).tolist() == [True, False, False]


def test_equal_series_have_nan_in_the_same_places() -> None:
    values = images()
    values[1, 0, 0] = np.nan
    left, right = TensorArray.from_numpy(values), TensorArray.from_numpy(values.copy())
    assert left.equals(right)
    assert not left.equals(TensorArray.from_numpy(images()))
    assert not left.equals(left[:2])
    pd.testing.assert_series_equal(pd.Series(left), pd.Series(right))


@pytest.mark.parametrize(
    "rows",
    [
        [np.array([1, 2]), None, np.array([3, 4])],
        [[1, 2], None, (3, 4)],
        pa.array([[1, 2], None, [3, 4]]),
        pd.array([[1, 2], None, [3, 4]], dtype=pd.ArrowDtype(pa.list_(pa.int8()))),
    ],
    ids=["arrays", "lists", "arrow", "arrow dtype"],
)
def test_rows_of_any_kind_become_tensors(rows: object) -> None:
    array = TensorArray._from_sequence(rows, dtype="tensor[float32, (2,)]")
    assert array.isna().tolist() == [False, True, False]
    assert array[2].tolist() == [3, 4]
    assert TensorArray._from_sequence(rows).dtype.value.kind == "i"


def test_astype_casts_values_and_folds_rows() -> None:
    series = column()
    flat = series.astype(TensorDtype("float64", (6,)))
    assert flat[1].tolist() == images()[1].ravel().tolist()
    assert series.astype(TensorDtype("float32", (None, 3)))[1].shape == (2, 3)
    assert series.astype(object).dtype == object
    arrow = flat.astype(pd.ArrowDtype(pa.list_(pa.float32())))
    assert arrow.dtype.pyarrow_dtype == pa.list_(pa.float32())
    with pytest.raises(InputError, match=r"holds 6 values where shape .5,. takes 5"):
        series.astype(TensorDtype("float32", (5,)))


def test_a_missing_row_survives_a_cast_to_integers() -> None:
    series = column().shift(1).astype(TensorDtype("int64", (2, 3)))
    assert series.isna().tolist() == [True, False, False, False]
    assert series[1].dtype == "int64"


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_slice_pickles_only_itself(protocol: int) -> None:
    array = TensorArray.from_numpy(np.zeros((10_000, 100), "float32"))
    part = array[5000:5002]
    dumped = pickle.dumps(part, protocol=protocol)
    assert part.nbytes == 800
    assert len(dumped) < 2000
    assert pickle.loads(dumped).equals(part)


def test_memory_usage_counts_the_rows() -> None:
    usage = column().to_frame().memory_usage(deep=True, index=False)
    assert usage["image"] == images().nbytes
    assert tokens().nbytes == (5 + 4) * 8


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.unique(),
        lambda s: s.sort_values(),
        lambda s: s.drop_duplicates(),
        lambda s: s.to_frame().groupby("image").size(),
        lambda s: s.to_frame().merge(s.to_frame(), on="image"),
    ],
    ids=["unique", "sort", "duplicates", "groupby", "merge"],
)
def test_tensors_are_no_keys(use) -> None:
    with pytest.raises(TypeError, match="neither order nor hash"):
        use(column())


def test_first_of_a_group_is_a_tensor() -> None:
    frame = column().to_frame().assign(key=[1, 1, 2, 2])
    frame.loc[0, "image"] = None
    first = frame.groupby("key").image.first()
    assert first.dtype == frame.image.dtype
    np.testing.assert_array_equal(first[1], images()[1])


def test_numpy_gets_one_row_an_object() -> None:
    rows = np.asarray(column())
    assert rows.shape == (4,)
    assert rows[0].shape == (2, 3)
    assert np.stack(column()).shape == (4, 2, 3)
    with pytest.raises(TypeError, match=r"use to_dense\(\)"):
        column().to_numpy("float32")
