from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer.batch.outputs.assembler import Assembler
from dask_infer.batch.outputs.column_dtypes import output_meta
from dask_infer.batch.outputs.pick import pick
from dask_infer.batch.outputs.resolve_outputs import (
    outputs_from_estimator,
    outputs_from_meta,
    resolve_outputs,
)
from dask_infer.batch.tensor.tensor_array import TensorDtype
from dask_infer.errors import OutputError


def inferred(output, names=None):
    """The columns promised for a model that returns `output` for a batch."""
    first = next(iter(output.values())) if isinstance(output, dict) else output
    first = first[0] if isinstance(output, tuple) else first
    return resolve_outputs(
        output, rows=len(first), tokens=None, output=names, kept=(), text=False
    )


def declared(meta, names=None):
    return outputs_from_meta(meta, names, ())


def add(assembler, rows, output, *padding):
    """Store what a model returned for a batch, as a feeder does."""
    assembler.add(rows, dict(pick(output, assembler.outputs)), *padding)


def assembled(outputs, output, n, **options):
    """Columns of a partition that was one batch."""
    assembler = Assembler(outputs, n, **options)
    add(assembler, slice(0, n), output)
    return assembler.columns()


VALUES = torch.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize("cut", [1, 2, 5, 6])
def test_batches_in_any_order_give_the_rows_in_theirs(cut):
    outputs = inferred({"v": VALUES, "s": VALUES[:, 0]})
    rows = np.array([4, 0, 5, 1, 3, 2])
    assembler = Assembler(outputs, 6)
    for part in (rows[cut:], rows[:cut]):
        if len(part):
            add(assembler, part, {"v": VALUES[part], "s": VALUES[part, 0]})
    columns = assembler.columns()
    np.testing.assert_array_equal(columns["v"].to_dense(), VALUES)
    np.testing.assert_array_equal(columns["s"], VALUES[:, 0])


def test_slices_of_rows():
    assembler = Assembler(inferred(VALUES), 6)
    add(assembler, slice(4, 6), VALUES[4:])
    add(assembler, slice(0, 4), VALUES[:4])
    np.testing.assert_array_equal(assembler.columns()["prediction"].to_dense(), VALUES)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_one_number_a_row(shape):
    values = VALUES[:, 0].reshape(shape)
    (column,) = assembled(inferred(values), values, 6).values()
    assert (column.dtype, column.tolist()) == (np.float32, [0, 2, 4, 6, 8, 10])


def test_columns_of_one_matrix():
    columns = assembled(inferred(VALUES, ["a", "b"]), VALUES, 6)
    assert columns["a"].tolist() == VALUES[:, 0].tolist()
    assert columns["b"].tolist() == VALUES[:, 1].tolist()


def test_more_than_two_dims():  # XG-08
    values = torch.arange(24.0).reshape(4, 2, 3)
    (column,) = assembled(inferred(values), values, 4).values()
    assert column.dtype == TensorDtype("float32", (2, 3))
    np.testing.assert_array_equal(column.to_dense(), values)


@pytest.mark.parametrize("nullable", [False, True])
def test_no_rows_have_the_promised_dtypes(nullable):  # DI-11, DM-14
    outputs = declared(
        {
            "f": "float32",
            "i": "int64",
            "b": "bool",
            "s": str,
            "o": object,
            "v": "tensor[float32, (3,)]",
            "r": "tensor[float32, (None, 3)]",
            "t": "datetime64[ns, UTC]",
        }
    )
    frame = pd.DataFrame(Assembler(outputs, 0, nullable=nullable).columns())
    meta = pd.DataFrame(output_meta(outputs, nullable))
    assert frame.dtypes.to_dict() == meta.dtypes.to_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_floats_that_numpy_lacks_become_float32(dtype):
    values = VALUES.to(dtype)
    (column,) = assembled(inferred(values), values, 6).values()
    np.testing.assert_array_equal(column.to_dense(), VALUES.to(dtype).float())


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.int8, torch.bool, torch.complex64, torch.uint16]
)
def test_other_dtypes_stay(dtype):
    values = torch.tensor([0, 1, 1]).to(dtype)
    (column,) = assembled(inferred(values), values, 3).values()
    assert column.tolist() == values.tolist()
    assert str(column.dtype) == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("count", [0, 3, 5])
def test_wrong_number_of_rows(count):
    assembler = Assembler(inferred(VALUES), 6)
    with pytest.raises(OutputError, match=f"{count} rows for a batch of 4 rows"):
        add(assembler, slice(0, 4), torch.zeros(count, 2))


def test_wrong_number_of_rows_in_one_field_writes_nothing():
    outputs = inferred({"a": VALUES, "b": VALUES})
    assembler = Assembler(outputs, 6)
    with pytest.raises(OutputError, match="1 rows for a batch of 6 rows"):
        add(assembler, slice(0, 6), {"a": VALUES, "b": VALUES[:1]})
    assert repr(assembler) == "<Assembler 0/6 rows, 2 columns>"


@pytest.mark.parametrize(
    "output, message",
    [
        (VALUES.double(), r'values of float64; .*{"prediction": "tensor\[float64, '),
        (VALUES[:, :1], r"promised as float32 in rows of shape \(2,\), .*\(1,\)"),
        (torch.zeros(6, 2, 2), r'"tensor\[float32, \(2, 2\)\]"'),
        ({"a": VALUES, "b": VALUES}, "returned arrays in 'a', 'b'"),
        ({"label": VALUES}, "returned arrays in 'label'"),
        (None, "no array with an entry a row .a NoneType.*meta="),
        (torch.tensor(1.0), "one value without rows for a batch of 6 rows"),
        ((VALUES, VALUES), "returned arrays in 0, 1"),
    ],
)
def test_what_was_not_promised_asks_for_meta(output, message):
    with pytest.raises(OutputError, match=message) as error:
        assembled(inferred(VALUES), output, 6)
    assert "meta=" in str(error.value) or "postprocess=" in str(error.value)


def test_missing_field_is_named():
    outputs = inferred({"logits": VALUES, "pooled": VALUES})
    with pytest.raises(OutputError, match=r"'pooled' promised, .* in 'logits'"):
        assembled(outputs, {"logits": VALUES, "pooled": None}, 6)


def test_wrong_width_of_a_matrix_with_named_columns():
    with pytest.raises(OutputError, match=r"2 columns .* shape \(6, 3\)"):
        assembled(inferred(VALUES, ["a", "b"]), torch.zeros(6, 3), 6)


def test_structure_may_change_where_columns_and_dtypes_do_not():
    named = inferred({"logits": VALUES})
    assert "logits" in assembled(named, VALUES, 6)
    assert "logits" in assembled(named, (VALUES,), 6)
    columns = inferred(VALUES, ["a", "b"])
    frame = {"b": VALUES[:, 1], "a": VALUES[:, 0], "more": VALUES}
    assert assembled(columns, frame, 6)["b"].tolist() == VALUES[:, 1].tolist()


@pytest.mark.parametrize(
    "output",
    [
        {"a": VALUES[:, 0], "b": VALUES[:, 1]},
        {"b": VALUES[:, 1], "a": VALUES[:, 0], "more": VALUES},
        (VALUES[:, 0], VALUES[:, 1]),
        VALUES,
        VALUES.numpy(),
        VALUES.tolist(),
        {"logits": VALUES},
        pd.DataFrame(VALUES.numpy(), columns=["a", "b"], index=list("zyxwvu")),
        pd.DataFrame(VALUES.numpy()),
        [{"a": a, "b": b} for a, b in VALUES.tolist()],
    ],
)
def test_declared_columns_are_found_in_any_structure(output):  # SP-14, SP-15
    columns = assembled(declared({"a": "float32", "b": "float32"}), output, 6)
    frame = pd.DataFrame(columns)
    expected = pd.DataFrame(VALUES.numpy(), columns=["a", "b"])
    pd.testing.assert_frame_equal(frame, expected)


@pytest.mark.parametrize(
    "output",
    [
        VALUES[:, 0],
        VALUES[:, :1],
        (VALUES[:, 0],),
        {"any": VALUES[:, 0]},
        pd.Series(VALUES[:, 0].numpy(), index=list("zyxwvu"), name="any"),
        pd.Series(VALUES[:, 0].tolist(), dtype="Float64"),
        pd.Series(VALUES[:, 0].tolist(), dtype="float[pyarrow]"),
        VALUES[:, 0].tolist(),
        list(VALUES[:, 0]),
        pd.DataFrame({"any": VALUES[:, 0].tolist()}),
    ],
)
def test_one_declared_column_is_found_in_any_structure(output):
    (column,) = assembled(declared("float32"), output, 6).values()
    assert (column.dtype, column.tolist()) == (np.float32, VALUES[:, 0].tolist())


def test_declared_column_is_picked_by_output():
    outputs = declared({"score": "float32"}, {"logits": "score"})
    output = {"pooled": VALUES, "logits": VALUES[:, 1]}
    assert assembled(outputs, output, 6)["score"].tolist() == [1, 3, 5, 7, 9, 11]
    with pytest.raises(OutputError, match=r"'logits' promised, .* in 'other'"):
        assembled(outputs, {"other": VALUES, "pooled": VALUES}, 6)


def test_several_arrays_for_one_declared_column_ask_which():
    with pytest.raises(OutputError, match=r'"prediction" promised.*output='):
        assembled(declared("float32"), {"a": VALUES, "b": VALUES}, 6)


@pytest.mark.parametrize(
    "found, promised",
    [
        (np.array([1.5, 2.5]), "float32"),
        (np.array([1, 2]), "float64"),
        (np.array([1, 2]), "int8"),
        (np.array([True, False]), "int64"),
        (np.array([1, 2], "uint8"), "Int64"),
    ],
)
def test_declared_dtypes_are_cast_to(found, promised):
    (column,) = assembled(declared(promised), found, 2).values()
    assert str(column.dtype) == promised
    assert column.tolist() == found.tolist()


@pytest.mark.parametrize(
    "found, promised",
    [
        (np.array([1.5, 2.5]), "int64"),
        (np.array([1, 300]), "int8"),
        (np.array(["a", "b"]), "float32"),
        (np.array([1j, 2j]), "float32"),
        (np.array([1, 2]), "bool"),
    ],
)
def test_casts_that_lose_are_refused(found, promised):
    with pytest.raises(OutputError, match=f'"prediction" is promised as {promised}'):
        assembled(declared(promised), found, 2)


def test_floats_of_estimators_are_cast():  # DM-01
    outputs = outputs_from_estimator([(None, "float64", ())], None, ())
    found = np.array([[1], [2]], "float32")
    (column,) = assembled(outputs, found, 2).values()
    assert (column.dtype, column.tolist()) == (np.float64, [1, 2])


def test_sparse_result_of_an_estimator():
    sparse = pytest.importorskip("scipy.sparse")
    outputs = outputs_from_estimator([(None, "float64", (3,))], None, ())
    (column,) = assembled(outputs, sparse.csr_matrix(np.eye(3)), 3).values()
    np.testing.assert_array_equal(column.to_dense(), np.eye(3))


def test_failed_rows_are_missing_in_every_column():  # BM-17
    meta = {
        "f": "float32",
        "i": "int64",
        "b": "bool",
        "s": str,
        "o": object,
        "v": "tensor[float32, (2,)]",
        "w": "tensor[int64, (2,)]",
        "r": "tensor[float32, (None,)]",
        "t": "datetime64[ns]",
    }
    assembler = Assembler(declared(meta), 3, nullable=True)
    assembler.missing(np.array([1]))
    output = {
        "f": torch.tensor([1.0, 3.0]),
        "i": torch.tensor([1, 3]),
        "b": torch.tensor([True, False]),
        "s": ["x", "z"],
        "o": [{}, []],
        "v": VALUES[:2],
        "w": VALUES[:2].long(),
        "r": VALUES[:2],
        "t": np.array(["2020-01-01", "2020-01-03"], "datetime64[ns]"),
    }
    add(assembler, np.array([2, 0]), output)
    frame = pd.DataFrame(assembler.columns())
    assert frame.isna().to_numpy().tolist() == [[False] * 9, [True] * 9, [False] * 9]
    promised = pd.DataFrame(output_meta(assembler.outputs, nullable=True))
    assert frame.dtypes.to_dict() == promised.dtypes.to_dict()
    assert frame["i"].dropna().tolist() == [3, 1]
    np.testing.assert_array_equal(frame["w"][0], [2, 3])


def test_all_rows_failed():
    meta = {"i": "int64", "r": "tensor[float32, (None,)]", "v": "tensor[int8, (2,)]"}
    assembler = Assembler(declared(meta), 2, nullable=True)
    assembler.missing(slice(0, 2))
    assert pd.DataFrame(assembler.columns()).isna().all(axis=None)


def test_only_nullable_columns_can_miss():
    with pytest.raises(ValueError, match="nullable"):
        Assembler(inferred(VALUES), 6).missing(slice(0, 1))


def test_rows_without_an_output_are_never_read():
    assembler = Assembler(inferred(VALUES), 6)
    add(assembler, slice(0, 4), VALUES[:4])
    with pytest.raises(RuntimeError, match="4 of 6 rows"):
        assembler.columns()
