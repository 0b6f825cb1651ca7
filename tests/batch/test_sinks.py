from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer.batch.outputs import STRING
from dask_infer.batch.sinks import Padding, build_sink
from dask_infer.batch.tensor_array import TensorArray, TensorDtype
from dask_infer.errors import OutputError
from dask_infer.spec import OutputColumn

LENGTHS = np.array([2, 4, 1, 0])
TOKENS = torch.arange(32.0).reshape(4, 4, 2)


def sink_of(dtype, shape=(), n=4, nullable=False, cast=True):
    column = OutputColumn("p", dtype, shape)
    return build_sink(column, n, nullable=nullable, cast=cast)


def column_of(sink, value, rows=slice(0, 4), padding=None):
    sink.put(rows, len(value), value, padding or Padding())
    return sink.finish(None)


def forward(value):
    """What a module makes of it under inference mode: memory of its own."""
    with torch.inference_mode():
        return value + 0


def memory(values):
    return values.__array_interface__["data"][0]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_one_batch_gives_its_own_memory(shape):
    value = forward(torch.rand(4, *shape))
    column = column_of(sink_of("float32", shape), value)
    values = column.to_dense() if shape else column
    assert memory(values) == value.data_ptr()


def test_weights_inputs_and_parts_are_copied():
    weights = torch.nn.Parameter(torch.rand(4))
    buffer = np.random.rand(4).astype("float32")
    part = forward(torch.rand(4, 9))[:, 0]
    tail = forward(torch.rand(9))[:4]
    for value in (weights, torch.from_numpy(buffer), buffer, part, tail):
        column = column_of(sink_of("float32"), value)
        start = value.ctypes.data if value is buffer else value.data_ptr()
        assert memory(column) != start


def test_several_batches_become_a_column_without_another_copy():
    sink = sink_of("float32", (2,))
    sink.put(slice(0, 2), 2, torch.zeros(2, 2), Padding())
    sink.put(slice(2, 4), 2, torch.ones(2, 2), Padding())
    column = sink.finish(None)
    assert memory(column.to_dense()) == memory(sink.block)


def test_padding_is_trimmed_on_either_side():  # CF-02
    for side in ("right", "left"):
        padding = Padding(LENGTHS, 4, side)
        column = column_of(sink_of("float32", (None, 2)), TOKENS, padding=padding)
        assert column.dtype == TensorDtype("float32", (None, 2))
        for row, tokens, length in zip(column, TOKENS, LENGTHS, strict=True):
            real = tokens[:length] if side == "right" else tokens[4 - length :]
            np.testing.assert_array_equal(row, real)


def test_ragged_batches_of_different_padding_in_any_order():  # CF-04
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 20)
    texts = [rng.random(length, "f4") for length in lengths]
    sink = sink_of("float32", (None,), n=20)
    for rows in np.split(np.argsort(lengths)[::-1], [3, 4, 11]):
        padded = int(lengths[rows].max())
        batch = np.zeros((len(rows), padded), "f4")
        for place, row in enumerate(rows):
            batch[place, : lengths[row]] = texts[row]
        padding = Padding(lengths[rows], padded)
        sink.put(rows, len(rows), torch.from_numpy(batch), padding)
    for row, text in zip(sink.finish(None), texts, strict=True):
        np.testing.assert_array_equal(row, text)


def test_ragged_rows_are_no_views_of_a_buffer_that_is_used_again():
    buffer = torch.ones(4, 3)
    sink = sink_of("float32", (None,), n=8)
    sink.put(slice(0, 4), 4, buffer, Padding(np.full(4, 3), 3))
    sink.put(slice(4, 8), 4, buffer.fill_(2), Padding(np.full(4, 3), 3))
    assert [row[0] for row in sink.finish(None)] == [1] * 4 + [2] * 4


def test_ragged_rows_from_lists_arrays_and_columns():
    rows = [[1.0, 2.0], [], None, [3.0]]
    arrays = [None if row is None else np.array(row) for row in rows]
    series = pd.Series(pd.array(rows, dtype=TensorDtype("float32", (None,))))
    for value in (rows, arrays, series):
        column = column_of(sink_of("float32", (None,)), value)
        assert column.isna().tolist() == [False, False, True, False]
        assert column[0].tolist() == [1, 2]
        assert len(column[1]) == 0


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.zeros(4, 4), r"rows of shape \(4,\)"),
        (torch.zeros(4, 5, 2), r"\(5, 2\) for a padded axis of 4"),
        (torch.zeros(4, 4, 3), r'"tensor\[float32, \(None, 3\)\]"'),
        (TOKENS.double(), "values of float64"),
        (["a", "b", "c", "d"], "rows that are none"),
    ],
)
def test_rows_that_are_not_as_promised_ragged(value, message):
    sink = sink_of("float32", (None, 2), cast=False)
    with pytest.raises(OutputError, match=message):
        sink.put(slice(0, 4), 4, value, Padding(LENGTHS, 4))


def test_generated_rows_of_another_length_stay_whole():
    column = column_of(
        sink_of("float32", (None,)), torch.ones(4, 7), padding=Padding(LENGTHS, 4)
    )
    assert [len(row) for row in column] == [7] * 4


@pytest.mark.parametrize(
    "value",
    [
        ["a", None, "", "é"],
        np.array(["a", None, "", "é"], object),
        pd.Series(["a", None, "", "é"], index=[3, 1, 1, 0]),
        pd.Series(["a", None, "", "é"], dtype="string"),
        pd.Series(["a", None, "", "é"], dtype="category"),
    ],
)
def test_text(value):
    column = column_of(sink_of("string"), value)
    assert column.dtype == STRING
    assert column.isna().tolist() == [False, True, False, False]
    assert column[3] == "é"


def test_numpy_text_and_text_in_any_order():  # CF-04
    sink = sink_of("string")
    sink.put(np.array([3, 1]), 2, np.array(["d", "b"]), Padding())
    sink.put(np.array([2, 0]), 2, np.array([["c"], ["a"]]), Padding())
    assert sink.finish(None).tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.zeros(4), 'values of torch.float32; .*{"p": "float32"}'),
        ([1, 2, 3, 4], "integer values"),
        (["a", 1, 2.0, "b"], 'mixed.* values; .*{"p": "object"}'),
        ([b"a", b"b", b"c", b"d"], "bytes values"),
        (np.array([["a", "b"]] * 4), r"in rows of \(2,\)"),
    ],
)
def test_what_is_no_text(value, message):
    with pytest.raises(OutputError, match=message):
        sink_of("string").put(slice(0, 4), 4, value, Padding())


@pytest.mark.parametrize(
    "value", [[{}, [1], None, "x"], [[1, 2]] * 4, [np.zeros(2)] * 4, list("abcd")]
)
def test_objects_stay_what_they_are(value):
    column = column_of(sink_of("object"), value)
    assert column.dtype == object
    assert all(found is given for found, given in zip(column, value, strict=True))


def test_arrays_become_objects_row_by_row():
    column = column_of(sink_of("object"), TOKENS, padding=Padding(LENGTHS, 4))
    assert [len(row) for row in column] == LENGTHS.tolist()
    np.testing.assert_array_equal(column[0], TOKENS[0, :2])
    assert column_of(sink_of("object"), torch.arange(4)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "dtype, values",
    [
        ("datetime64[ns, UTC]", pd.date_range("2020", periods=4, tz="UTC")),
        ("double[pyarrow]", [1.0, None, 2.0, 3.0]),
    ],
)
def test_dtypes_that_only_pandas_has(dtype, values):
    column = column_of(sink_of(dtype), pd.Series(values))
    expected = pd.Series(values, dtype=dtype)
    pd.testing.assert_series_equal(pd.Series(column), expected)


def test_values_that_such_a_dtype_cannot_hold():
    with pytest.raises(OutputError, match=r"promised as double.pyarrow"):
        column_of(sink_of("double[pyarrow]"), ["a", "b", "c", "d"])


@pytest.mark.parametrize(
    "values",
    [[1, None, 3, 4], pd.Series([1, None, 3, 4], dtype="Int64")],
)
def test_numbers_that_came_missing(values):  # SP-33
    assert column_of(sink_of("Int64"), values).isna().tolist() == [0, 1, 0, 0]
    assert column_of(sink_of("int64", nullable=True), values)[2] == 3
    floats = column_of(sink_of("float32"), values)
    np.testing.assert_array_equal(floats, np.array([1, np.nan, 3, 4], "f4"))
    with pytest.raises(OutputError, match=r'missing values.*"Int64"'):
        column_of(sink_of("int64"), values)


def test_every_number_came_missing():
    assert column_of(sink_of("Int64"), [None] * 4).isna().all()
    assert np.isnan(column_of(sink_of("float32"), [None] * 4)).all()


def test_vectors_that_came_missing():
    column = column_of(sink_of("float32", (2,)), [[1, 2], None, np.ones(2), [3, 4]])
    assert isinstance(column, TensorArray)
    assert column.isna().tolist() == [False, True, False, False]
    assert column[3].tolist() == [3, 4]


def test_vectors_in_a_tensor_column():
    array = TensorArray.from_numpy(np.ones((4, 2), "f4"))
    column = column_of(sink_of("float32", (2,)), pd.Series(array))
    assert column.equals(array)


def test_rows_of_different_lengths_name_the_remedy():
    with pytest.raises(OutputError, match=r"different lengths; .*meta="):
        column_of(sink_of("float32", (2,)), [[1, 2], [1], [1, 2], [3]])


def test_tensors_that_numpy_cannot_read_as_they_are():
    conjugate = torch.tensor([1j, 2j, 3j, 4j]).conj()
    assert column_of(sink_of("complex64"), conjugate)[1] == -2j
    sparse = torch.eye(4).to_sparse()
    column = column_of(sink_of("float32", (4,)), sparse)
    np.testing.assert_array_equal(column.to_dense(), np.eye(4))
    leaf = torch.ones(4, requires_grad=True)
    assert column_of(sink_of("float32"), leaf).tolist() == [1] * 4
