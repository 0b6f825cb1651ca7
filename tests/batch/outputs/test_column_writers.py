from __future__ import annotations

from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dask_infer.batch.outputs.column_dtypes import STRING
from dask_infer.batch.outputs.column_writers import build_writer
from dask_infer.batch.tensor.tensor_array import TensorArray, TensorDtype
from dask_infer.batch.text.batch_padding import Padding
from dask_infer.errors import OutputError
from dask_infer.spec import OutputColumn

LENGTHS = np.array([2, 4, 1, 0])
TOKENS = torch.arange(32.0).reshape(4, 4, 2)


def writer_of(dtype, shape=(), n=4, nullable=False, cast=True):
    column = OutputColumn("p", dtype, shape)
    return build_writer(column, n, nullable=nullable, cast=cast)


def column_of(writer, value, rows=slice(0, 4), padding=None):
    writer.write(rows, len(value), value, padding or Padding())
    return writer.result(None)


def forward(value):
    """What a module makes of it under inference mode: memory of its own."""
    with torch.inference_mode():
        return value + 0


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (None, 3), (None,)])
def test_columns_are_no_memory_of_the_model(shape):  # ZO-5
    rows = tuple(size or 2 for size in shape)
    whole = forward(torch.rand(4, *rows))
    buffer = np.random.rand(4, *rows).astype("float32")
    weights = torch.nn.Parameter(torch.rand(4, *rows))
    for value in (whole, whole[:], weights, buffer):
        column = column_of(writer_of("float32", shape), value)
        values = column.rows.values if shape else column
        given = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        assert not np.shares_memory(values, given)


def test_objects_are_no_memory_of_the_model():  # ZO-5
    array, listed, tensor = np.zeros(2), [1, 2], torch.zeros(2)
    given = [{"a": array}, listed, (tensor,), array]
    column = column_of(writer_of("object"), given)
    array += 1
    tensor += 1
    listed.append(3)
    assert column[0]["a"].tolist() == column[2][0].tolist() == column[3].tolist()
    assert column[3].tolist() == [0, 0]
    assert column[1] == [1, 2]


def test_several_batches_become_a_column_without_another_copy():
    writer = writer_of("float32", (2,))
    writer.write(slice(0, 2), 2, torch.zeros(2, 2), Padding())
    writer.write(slice(2, 4), 2, torch.ones(2, 2), Padding())
    assert np.shares_memory(writer.result(None).to_dense(), writer.block)


def test_padding_is_trimmed_on_either_side():  # CF-02
    for side in ("right", "left"):
        padding = Padding(LENGTHS, 4, side)
        writer = writer_of("float32", (None, 2), cast=False)
        column = column_of(writer, TOKENS, padding=padding)
        assert column.dtype == TensorDtype("float32", (None, 2))
        for row, tokens, length in zip(column, TOKENS, LENGTHS, strict=True):
            real = tokens[:length] if side == "right" else tokens[4 - length :]
            np.testing.assert_array_equal(row, real)


def test_ragged_batches_of_different_padding_in_any_order():  # CF-04
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 20)
    texts = [rng.random(length, "f4") for length in lengths]
    writer = writer_of("float32", (None,), n=20, cast=False)
    for rows in np.split(np.argsort(lengths)[::-1], [3, 4, 11]):
        padded = int(lengths[rows].max())
        batch = np.zeros((len(rows), padded), "f4")
        for place, row in enumerate(rows):
            batch[place, : lengths[row]] = texts[row]
        padding = Padding(lengths[rows], padded)
        writer.write(rows, len(rows), torch.from_numpy(batch), padding)
    for row, text in zip(writer.result(None), texts, strict=True):
        np.testing.assert_array_equal(row, text)


def test_ragged_rows_are_no_views_of_a_buffer_that_is_used_again():
    buffer = torch.ones(4, 3)
    writer = writer_of("float32", (None,), n=8)
    writer.write(slice(0, 4), 4, buffer, Padding(np.full(4, 3), 3))
    writer.write(slice(4, 8), 4, buffer.fill_(2), Padding(np.full(4, 3), 3))
    assert [row[0] for row in writer.result(None)] == [1] * 4 + [2] * 4


def test_ragged_rows_from_lists_arrays_and_columns():
    rows = [[1.0, 2.0], [], None, [3.0]]
    arrays = [None if row is None else np.array(row) for row in rows]
    series = pd.Series(pd.array(rows, dtype=TensorDtype("float32", (None,))))
    for value in (rows, arrays, series):
        column = column_of(writer_of("float32", (None,)), value)
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
    writer = writer_of("float32", (None, 2), cast=False)
    with pytest.raises(OutputError, match=message):
        writer.write(slice(0, 4), 4, value, Padding(LENGTHS, 4))


def test_generated_rows_of_another_length_stay_whole():
    column = column_of(
        writer_of("float32", (None,)), torch.ones(4, 7), padding=Padding(LENGTHS, 4)
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
    column = column_of(writer_of("string"), value)
    assert column.dtype == STRING
    assert column.isna().tolist() == [False, True, False, False]
    assert column[3] == "é"


def test_numpy_text_and_text_in_any_order():  # CF-04
    writer = writer_of("string")
    writer.write(np.array([3, 1]), 2, np.array(["d", "b"]), Padding())
    writer.write(np.array([2, 0]), 2, np.array([["c"], ["a"]]), Padding())
    assert writer.result(None).tolist() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "value, message",
    [
        (torch.zeros(4), 'values of float32; .*{"p": "float32"}'),
        ([1, 2, 3, 4], "integer values"),
        (["a", 1, 2.0, "b"], 'mixed.* values; .*{"p": "object"}'),
        ([b"a", b"b", b"c", b"d"], "bytes values"),
        (np.array([["a", "b"]] * 4), r"in rows of \(2,\)"),
    ],
)
def test_what_is_no_text(value, message):
    with pytest.raises(OutputError, match=message):
        writer_of("string").write(slice(0, 4), 4, value, Padding())


def test_a_ragged_row_alone_in_an_array_of_objects():  # neighbours within a radius
    writer = writer_of("float64", (None,), n=1, cast=False)
    boxed = np.empty(1, object)
    boxed[0] = np.arange(4.0)
    writer.write(slice(0, 1), 1, boxed, Padding())
    np.testing.assert_array_equal(writer.result(None)[0], np.arange(4.0))


@pytest.mark.parametrize(
    "value", [[{}, [1], None, "x"], [[1, 2]] * 4, [np.zeros(2)] * 4, list("abcd")]
)
def test_objects_stay_what_they_are(value):
    column = column_of(writer_of("object"), value)
    assert column.dtype == object
    for found, given in zip(column, value, strict=True):
        assert type(found) is type(given)
        assert np.all(found == given)


def test_arrays_become_objects_row_by_row():
    column = column_of(writer_of("object"), TOKENS)
    for row, given in zip(column, TOKENS, strict=True):
        np.testing.assert_array_equal(row, given)
    assert column_of(writer_of("object"), torch.arange(4)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "dtype, values",
    [
        ("datetime64[ns, UTC]", pd.date_range("2020", periods=4, tz="UTC")),
        ("double[pyarrow]", [1.0, None, 2.0, 3.0]),
    ],
)
def test_dtypes_that_only_pandas_has(dtype, values):
    column = column_of(writer_of(dtype), pd.Series(values))
    expected = pd.Series(values, dtype=dtype)
    pd.testing.assert_series_equal(pd.Series(column), expected)


def test_values_that_such_a_dtype_cannot_hold():
    with pytest.raises(OutputError, match=r"promised as double.pyarrow"):
        column_of(writer_of("double[pyarrow]"), ["a", "b", "c", "d"])


@pytest.mark.parametrize(
    "values",
    [
        [1, None, 3, 4],
        *(pd.Series([1, None, 3, 4], dtype=dtype) for dtype in ("Int64", "O")),
        pa.array([1, None, 3, 4]),
    ],
)
def test_numbers_that_came_missing(values):  # SP-33
    assert column_of(writer_of("Int64"), values).isna().tolist() == [0, 1, 0, 0]
    assert column_of(writer_of("int64", nullable=True), values)[2] == 3
    floats = column_of(writer_of("float32"), values)
    np.testing.assert_array_equal(floats, np.array([1, np.nan, 3, 4], "f4"))
    with pytest.raises(OutputError, match=r'missing values.*"Int64"'):
        column_of(writer_of("int64"), values)


def test_every_number_came_missing():
    assert column_of(writer_of("Int64"), [None] * 4).isna().all()
    assert np.isnan(column_of(writer_of("float32"), [None] * 4)).all()


def test_vectors_that_came_missing():
    column = column_of(writer_of("float32", (2,)), [[1, 2], None, np.ones(2), [3, 4]])
    assert isinstance(column, TensorArray)
    assert column.isna().tolist() == [False, True, False, False]
    assert column[3].tolist() == [3, 4]


def test_vectors_in_a_tensor_column():
    array = TensorArray.from_numpy(np.ones((4, 2), "f4"))
    column = column_of(writer_of("float32", (2,)), pd.Series(array))
    assert column.equals(array)


def test_rows_of_different_lengths_name_the_remedy():
    with pytest.raises(OutputError, match=r"different lengths; .*meta="):
        column_of(writer_of("float32", (2,)), [[1, 2], [1], [1, 2], [3]])


def test_tensors_that_numpy_cannot_read_as_they_are():
    conjugate = torch.tensor([1j, 2j, 3j, 4j]).conj()
    assert column_of(writer_of("complex64"), conjugate)[1] == -2j
    sparse = torch.eye(4).to_sparse()
    column = column_of(writer_of("float32", (4,)), sparse)
    np.testing.assert_array_equal(column.to_dense(), np.eye(4))
    leaf = torch.ones(4, requires_grad=True)
    assert column_of(writer_of("float32"), leaf).tolist() == [1] * 4


@pytest.mark.parametrize(
    "shape, value",
    [
        ((), torch.tensor(3.0)),
        ((), np.float32(3)),
        ((), 3.0),
        ((), torch.tensor([[3.0]])),
        ((2,), torch.tensor([3.0, 4.0])),
        ((2,), [3.0, 4.0]),
        ((2, 2), torch.full((2, 2), 3.0)),
        ((None,), torch.tensor([3.0, 4.0])),
        ((None,), [3.0, 4.0]),
        ((None, 2), torch.full((5, 2), 3.0)),
    ],
)
def test_what_has_the_shape_of_a_row_is_the_row_of_a_batch_of_one(shape, value):
    writer = writer_of("float32", shape, n=1)  # ZO-1
    writer.write(slice(0, 1), 1, value, Padding())
    row = np.asarray(writer.result(None)[0])
    given = value.numpy() if isinstance(value, torch.Tensor) else np.array(value)
    np.testing.assert_array_equal(row, given.reshape(row.shape))
    with pytest.raises(OutputError):
        writer_of("float32", shape).write(slice(0, 4), 4, value, Padding())


@pytest.mark.parametrize("value", ["a", np.array("a"), ["a"], np.array([["a"]])])
def test_a_string_is_the_row_of_a_batch_of_one(value):  # ZO-1
    for dtype in ("string", "object"):
        writer = writer_of(dtype, n=1)
        writer.write(slice(0, 1), 1, value, Padding())
        assert str(np.ravel(writer.result(None)[0])[0]) == "a"


LISTS = pd.ArrowDtype(pa.list_(pa.float32()))


# A batch of one row was taken for a row that the model squeezed (ZO-1).
@pytest.mark.parametrize(
    "made",
    [
        list,
        lambda rows: pd.Series(rows, dtype=object),
        lambda rows: pd.Series(rows, dtype=LISTS),
        lambda rows: pd.array(rows, dtype=TensorDtype("float32", (None,))),
        lambda rows: np.fromiter(rows, object, len(rows)),
        lambda rows: pa.array(rows, pa.list_(pa.float32())),
        pa.array,  # of no type, where the row is missing
    ],
    ids=["list", "objects", "lists", "tensor", "array", "arrow", "untyped"],
)
@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", (None,)), ("object", ()), (LISTS, ())], ids=str
)
def test_a_row_alone_is_what_it_is_among_others(made, dtype, shape):
    rows = [[1.0, 2.0], None, [3.0], [4.0]]
    together, apart = writer_of(dtype, shape), writer_of(dtype, shape)
    whole = column_of(together, made(rows))
    for i, row in enumerate(rows):
        apart.write(slice(i, i + 1), 1, made([row]), Padding())
    for one, other in zip(apart.result(None), whole, strict=True):
        assert pd.isna(one) is pd.isna(other) is True or list(one) == list(other)
    assert list(whole[0]) == [1.0, 2.0]


def test_lists_of_other_lengths_are_the_models_fault():
    ragged = pd.array([[1.0], [2.0, 3.0]], dtype=TensorDtype("float32", (None,)))
    with pytest.raises(OutputError, match="rows of different lengths"):
        writer_of("float32", (2,), n=2).write(slice(0, 2), 2, ragged, Padding())


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1]])
def test_one_token_that_the_model_squeezed(lengths):  # ZO-1
    n = len(lengths)
    for inner in ((), (2,)):
        writer = writer_of("float32", (None, *inner), n=n, cast=False)
        value = torch.ones(n, 1, *inner).squeeze()
        writer.write(slice(0, n), n, value, Padding(np.array(lengths), 1))
        rows = [row.shape for row in writer.result(None)]
        assert rows == [(1, *inner)] * n


STRUCT = pa.struct([("box", pa.list_(pa.float32())), ("label", pa.string())])


@pytest.mark.parametrize(
    "arrow, rows",
    [
        (STRUCT, [{"box": [0.5, 1.0], "label": "a"}, None, {"box": [], "label": None}]),
        (pa.list_(STRUCT), [[{"box": [0.5], "label": "a"}], [], None]),
        (pa.map_(pa.string(), pa.int64()), [[("a", 1)], [], None]),
        (pa.decimal128(10, 2), [Decimal("1.25"), None, Decimal("-3.00")]),
        (pa.list_(pa.string()), [["a", "b"], [], None]),
        (pa.list_(pa.list_(pa.int64())), [[[1], [2, 3]], [], None]),
        (pa.date32(), [date(2020, 1, 2), None, date(2021, 1, 2)]),
    ],
)
def test_arrow_dtypes_are_kept(arrow, rows):
    writer = writer_of(pd.ArrowDtype(arrow), n=3)
    writer.write(np.array([2]), 1, rows[2:], Padding())
    writer.write(slice(0, 2), 2, rows[:2], Padding())
    column = writer.result(None)
    assert column.dtype == pd.ArrowDtype(arrow)
    assert pa.array(column).to_pylist() == rows
    assert writer_of(pd.ArrowDtype(arrow), n=0).result(None).dtype == column.dtype


def test_tensors_in_a_struct():  # ZO-6
    value = [{"box": torch.tensor([0.5, 1.0]), "label": "a"}]
    column = column_of(writer_of(pd.ArrowDtype(STRUCT), n=1), value, slice(0, 1))
    assert pa.array(column).to_pylist() == [{"box": [0.5, 1.0], "label": "a"}]


def test_a_value_that_does_not_fit_is_its_rows_fault_and_a_dtype_is_no_rows():  # ZO-2
    for dtype, value, own in [
        ("int8", np.array([1, 300]), True),
        (pd.ArrowDtype(pa.int8()), [1, 300], True),
        ("int8", np.array([1.5, 2.5]), False),
        ("float32", np.zeros((2, 3)), False),
        ("float32", np.zeros(3), False),
        ("string", [1, 2], False),
    ]:
        with pytest.raises(OutputError) as raised:
            writer_of(dtype, n=2).write(slice(0, 2), 2, value, Padding())
        assert raised.value.of_a_row is own
