"""Batches hold what the frame holds, as the model reads it, in memory of their own."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dask_infer.batch.inputs.columns import ArrayColumn
from dask_infer.batch.inputs.decided_dtypes import with_integers
from dask_infer.batch.inputs.encode_options import EncodeOptions
from dask_infer.batch.inputs.encoder import Encoder
from dask_infer.batch.inputs.resolve_inputs import resolve_inputs
from dask_infer.batch.tensor.tensor_array import TensorDtype
from dask_infer.errors import InputError
from dask_infer.spec import Inputs
from dask_infer.spec.token_rules import TokenRules

INT32, TEXT = pd.ArrowDtype(pa.int32()), pd.ArrowDtype(pa.string())

FRAME = pd.DataFrame(
    {
        "a": np.arange(5, dtype="float64") / 2,
        "b": pd.array([1, None, 3, 4, 5], dtype="Int64"),
        "c": pd.array([1.5, None, 3, 4, 5], dtype=pd.ArrowDtype(pa.float32())),
        "x": np.arange(5, dtype="int16"),
        "m": [True, False, True, False, True],
        "t": ["p", "q", "r", "s", "t"],
    },
    index=pd.Index([10, 20, 30, 40, 50], name="key"),
)


def encoder(frame, columns=None, interface="tensor", hint=None, **options):
    known = {key: options.pop(key) for key in ("shapes", "schema") if key in options}
    inputs = resolve_inputs(
        frame.iloc[:0],
        columns,
        interface_hint=hint or interface,
        tokenizer=options.get("tokenizer") is not None,
        preprocess=options.get("preprocess") is not None,
        **known,
    )
    preprocess = options.pop("preprocess", None)
    return Encoder(frame, inputs, EncodeOptions(interface, **options), preprocess)


def only(batch):
    assert not batch.kwargs
    (value,) = batch.args
    return value


@pytest.mark.parametrize("rows", [slice(1, 4), np.array([3, 0, 1]), slice(0, 0)])
@pytest.mark.parametrize("floating", [torch.float32, torch.float64, torch.bfloat16])
# SP-07..13, SP-31..33
def test_columns_are_stacked_in_the_models_dtype(rows, floating):
    columns = ["a", "b", "c", "x", "m"]
    tensor = only(encoder(FRAME, columns, floating=floating).batch(rows))
    expected = FRAME[columns].iloc[rows].to_numpy("float64", na_value=np.nan)
    assert tensor.dtype == floating
    torch.testing.assert_close(
        tensor, torch.from_numpy(expected.copy()).to(floating), equal_nan=True
    )


# torch takes neither: one block (["a"], as read from FITS or HDF5) was not cast first
@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", np.longdouble])
@pytest.mark.parametrize("columns", ["a", ["a"], ["a", "b"]])
def test_columns_of_dtypes_torch_has_not_are_cast(dtype, columns):
    frame = FRAME[["a"]].round().assign(b=1.0).astype(dtype)
    tensor = only(encoder(frame, columns).batch(slice(1, 4)))
    expected = frame[columns].iloc[1:4].to_numpy("float32")
    assert tensor.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [">f4", ">i8"])
def test_arrays_of_preprocess_may_have_another_byte_order(dtype):
    made = encoder(FRAME, "x", preprocess=lambda f: f.to_numpy(dtype))
    assert only(made.batch(slice(0, 5)))[:, 0].tolist() == FRAME["x"].tolist()


@pytest.mark.parametrize(
    ("column", "dtype"), [("a", torch.float32), ("x", torch.int64), ("m", torch.bool)]
)
def test_single_columns_have_one_axis(column, dtype):
    tensor = only(encoder(FRAME, column).batch(slice(1, 3)))
    assert tensor.shape == (2,)
    assert tensor.dtype == dtype
    assert tensor.tolist() == FRAME[column].tolist()[1:3]


# FACTS 19: frames are read-only under copy-on-write
@pytest.mark.parametrize("columns", ["a", ["a"], ["a", "x"], "x", "v", ("v", ["a"])])
def test_tensors_own_their_memory(columns):
    frame = FRAME.assign(v=pd.Series(list(np.ones((5, 2), "float32")), FRAME.index))
    made = encoder(frame, columns, schema={"v": (2,)}, floating=torch.float64)
    for rows in (slice(0, 5), np.arange(5)):
        before = [value.clone() for value in made.batch(rows).args]
        for value in made.batch(rows).args:
            assert value.is_contiguous()
            value.add_(1)
        for value, old in zip(made.batch(rows).args, before, strict=True):
            assert torch.equal(value, old)


def test_positional_and_keyword_arguments():
    batch = encoder(FRAME, ("x", ["a", "c"])).batch(slice(0, 2))
    assert [tuple(value.shape) for value in batch.args] == [(2,), (2, 2)]
    batch = encoder(FRAME, {"ids": "x", "dense": ["a"]}).batch(slice(0, 2))
    assert {name: tuple(v.shape) for name, v in batch.kwargs.items()} == {
        "ids": (2,),
        "dense": (2, 1),
    }
    assert batch.shapes() == "ids=int64 (2,), dense=float32 (2, 1)"
    assert batch.rows == 2


def test_stacked_integers_for_an_embedding():
    frame = pd.DataFrame({"x": [1, 2], "y": pd.array([3, 4], dtype="Int32")})
    inputs = resolve_inputs(frame.iloc[:0], None, interface_hint="tensor")
    inputs = with_integers(inputs, frame, True)
    tensor = only(Encoder(frame, inputs, EncodeOptions("tensor")).batch(slice(None)))
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [[1, 3], [2, 4]]


VECTORS = np.arange(24, dtype="float64").reshape(4, 6)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(list(VECTORS)),
        pd.Series(VECTORS.tolist()),
        pd.Series(VECTORS.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float32(), 6))),
        pd.Series(VECTORS.tolist(), dtype=pd.ArrowDtype(pa.list_(pa.float64()))),
        pd.Series(list(VECTORS)).astype(TensorDtype("float32", (6,))),
    ],
    ids=["arrays", "lists", "fixed", "variable", "tensor"],
)
@pytest.mark.parametrize("shape", [None, (2, 3)])
def test_list_columns_are_dense(column, shape):
    shapes = None if shape is None else {"v": shape}
    made = encoder(pd.DataFrame({"v": column}), "v", shapes=shapes)
    tensor = only(made.batch(np.array([2, 1])))
    assert tensor.dtype == torch.float32
    assert tensor.shape == (2, *(shape or (6,)))
    assert tensor.reshape(2, 6).tolist() == VECTORS[[2, 1]].tolist()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.5, None, 2.0], torch.float32),
        ([Decimal("1.5"), None, 2.0], torch.float32),
        ([1, 2.5, 3], torch.float32),
        ([1, 2, 3], torch.int64),
        ([True, False, True], torch.bool),
    ],
)
def test_numbers_in_object_columns(values, dtype):
    frame = pd.DataFrame({"o": pd.Series(values, dtype=object)})
    tensor = only(encoder(frame, "o").batch(slice(None)))
    assert tensor.dtype == dtype
    expected = torch.tensor([np.nan if v is None else float(v) for v in values])
    torch.testing.assert_close(tensor.float(), expected, equal_nan=True)


@pytest.mark.parametrize("interface", ["tensor", "numpy"])
@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([[1.0, 2.0], None, [3.0, 4.0]], object),
        ([[1.0, 2.0], None, [3.0, 4.0]], pd.ArrowDtype(pa.list_(pa.float64()))),
        ([None, None, None], object),
        (["a", None, "b"], object),
    ],
)
def test_a_missing_row_of_unknown_shape_is_refused_wherever_it_is(
    values, dtype, interface
):
    frame = pd.DataFrame({"v": pd.Series(values, dtype=dtype)})
    for part in (frame, frame.iloc[1:], frame.iloc[1:2]):
        with pytest.raises(InputError, match='"v": row '):
            encoder(part, "v", interface, "numpy").batch(slice(None))


def test_a_missing_row_of_known_shape_is_nan_wherever_it_is():
    frame = pd.DataFrame({"v": pd.Series([[1.0, 2.0], None], dtype=object)})
    for part in (frame, frame.iloc[1:]):
        rows = only(encoder(part, "v", shapes={"v": 2}).batch(slice(None)))
        assert rows[-1].isnan().all()
    objects = pd.DataFrame({"o": pd.Series([None], dtype=object)})
    assert only(encoder(objects, ["o"]).batch(slice(None))).isnan().all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pd.array([1, None], dtype="Int64"), '"x": row 8 is missing'),
        (pd.array([1, None], dtype=INT32), "row 8 is missing"),
        (np.array([1, np.nan]), "row 8 is missing"),
        (np.array([1, 2.5]), "row 8 holds 2.5, which is no int64"),
        (np.array([1, np.inf]), "row 8 holds inf"),
        (np.array([1, 2**63], "uint64"), "row 8 holds 9223372036854775808"),
    ],
)
def test_integer_arguments_name_what_they_cannot_hold(values, message):
    frame = pd.DataFrame({"x": values}, index=[7, 8])
    inputs = resolve_inputs(
        pd.DataFrame({"x": pd.Series(dtype="int64")}), "x", interface_hint="tensor"
    )
    made = Encoder(frame, inputs, EncodeOptions("tensor"))
    assert only(made.batch(slice(0, 1))).tolist() == [1]
    with pytest.raises(InputError, match=message):
        made.batch(slice(0, 2))


@pytest.mark.parametrize(
    ("values", "columns", "message"),
    [
        ([1.5, "abc"], "o", "\"o\": row 8 holds 'abc', which is no number"),
        ([1.5, "2"], ["o"], "row 8 holds '2'"),
        (["a", "b"], "o", "row 7 holds 'a', .* or pass tokenizer="),
        ([[1, 2], [1]], ["o"], '"o" holds lists'),
        ([[1, 2], "x"], "o", '"o": row 8 holds text'),
        ([[1, 2], [1]], "o", '"o": row 8 '),
        ([pd.Timestamp(0), pd.Timestamp(1)], "o", "row 7 holds Timestamp"),
    ],
)
def test_object_columns_name_the_row_and_value(values, columns, message):
    frame = pd.DataFrame({"o": pd.Series(values, [7, 8], dtype=object)})
    with pytest.raises(InputError, match=message):
        encoder(frame, columns).batch(slice(0, 2))


# BM-17..21: a batch without the bad row is well
@pytest.mark.parametrize(
    ("values", "bad"),
    [
        ([1.0, 2.0, "bad", 4.0], 2),
        ([[1.0, 2.0], [3.0, 4.0], [5.0], [6.0, 7.0]], 2),
        ([[1.0], [3.0, 4.0], [5.0, 6.0], [6.0, 7.0]], 0),
        ([[1], None, [5], [6]], 1),
    ],
)
def test_only_batches_with_the_bad_row_fail(values, bad):
    made = encoder(pd.DataFrame({"o": pd.Series(values, dtype=object)}), "o")
    good = [row for row in range(4) if row != bad]
    assert len(only(made.batch(np.array(good)))) == 3
    with pytest.raises(InputError, match=f"row {bad}"):
        made.batch(np.array([bad]))


def test_beyond_the_dtypes_range_is_infinity():
    frame = pd.DataFrame({"a": [1e300, -1e300]})
    for columns in ("a", ["a"]):
        tensor = only(encoder(frame, columns).batch(slice(None)))
        assert tensor.flatten().tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize(
    ("columns", "dtype", "values"),
    [
        ("a", "float64", [0.0, 0.5]),
        ("x", "int16", [0, 1]),
        ("c", "float32", [1.5, np.nan]),
        (["a", "x"], "float64", [[0.0, 0.0], [0.5, 1.0]]),
        (["x"], "int16", [[0], [1]]),
    ],
)
def test_callables_get_arrays_in_the_frames_own_dtypes(columns, dtype, values):
    array = only(encoder(FRAME, columns, "numpy").batch(slice(0, 2)))
    assert isinstance(array, np.ndarray)
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("dtype", ["str", "object", TEXT], ids=str)
def test_callables_get_text_as_a_list(dtype):
    frame = FRAME.astype({"t": dtype})
    assert only(encoder(frame, "t", "numpy").batch(np.array([2, 0]))) == ["r", "p"]


def test_arrays_cast_for_a_runtime_that_reads_arrays():
    array = only(encoder(FRAME, ["a", "x"], "numpy", hint="tensor").batch(slice(2)))
    assert isinstance(array, np.ndarray)
    assert array.dtype == "float32"


# DM-01..08
def test_estimators_get_a_frame_as_plain_pandas_has_it():
    frame = only(encoder(FRAME, ["b", "t"], "frame").batch(np.array([3, 1])))
    expected = FRAME[["b", "t"]].astype({"b": "float64", "t": object}).iloc[[3, 1]]
    pd.testing.assert_frame_equal(frame, expected)


def test_the_frame_is_the_rows_with_the_named_columns():
    batch = encoder(FRAME, ("x", "a")).batch(np.array([4, 0]))
    pd.testing.assert_frame_equal(batch.frame, FRAME[["x", "a"]].iloc[[4, 0]])


def test_a_frame_of_more_rows_than_columns_read_is_never_built():
    made = encoder(FRAME, "x")
    made.inputs = Inputs(made.inputs.arguments, ("gone",))
    assert len(only(made.batch(slice(0, 2)))) == 2


def letters(texts):
    return {"ids": [[ord(letter) for letter in text] for text in texts]}


WORDS = pd.DataFrame({"t": ["ab", "c", "defg"], "a": [1.0, 2.0, 3.0]}, [7, 8, 9])


def test_tokens_are_keyword_arguments():
    made = encoder(WORDS, {"t": "t", "dense": ["a"]}, tokenizer=letters)
    assert made.lengths.tolist() == [2, 1, 4]
    batch = made.batch(np.array([1, 0]))
    assert batch.kwargs.keys() == {"ids", "attention_mask", "dense"}
    assert batch.kwargs["ids"].tolist() == [[99, 0], [97, 98]]
    assert batch.kwargs["ids"].dtype == torch.int64
    assert batch.padding.lengths.tolist() == [1, 2]
    assert batch.padding.width == 2
    assert (batch.padding.side, made.truncated) == ("right", 0)


def test_tokens_for_callables_are_arrays():
    batch = encoder(WORDS, "t", "numpy", tokenizer=letters).batch(slice(0, 1))
    assert isinstance(batch.kwargs["ids"], np.ndarray)


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("dtype", ["str", "object"])
@pytest.mark.parametrize("options", [{"tokenizer": letters}, {"interface": "numpy"}])
def test_missing_text_is_named(missing, dtype, options):
    frame = WORDS.assign(t=pd.Series(["ab", missing, "c"], WORDS.index, dtype=dtype))
    made = encoder(frame, "t", **options)
    made.batch(np.array([0, 2]))
    with pytest.raises(InputError, match='"t": row 8 is missing'):
        made.batch(slice(0, 2))


def test_what_is_no_text_is_named():
    frame = WORDS.assign(t=pd.Series(["ab", 3, "c"], WORDS.index, dtype=object))
    made = encoder(frame, "t", tokenizer=letters)
    made.batch(np.array([0, 2]))
    with pytest.raises(InputError, match='"t": row 8 holds 3, which is no text'):
        made.batch(slice(0, 2))


def test_a_text_that_breaks_the_tokenizer_fails_only_its_batch():
    def picky(texts):
        if "c" in texts:
            raise KeyError("c")
        return letters(texts)

    made = encoder(WORDS, "t", tokenizer=picky)
    assert made.lengths is None
    assert made.batch(np.array([0, 2])).padding.width == 4
    with pytest.raises(InputError, match='tokenizer failed on column "t": KeyError'):
        made.batch(slice(1, 2))


IDS = pd.DataFrame({"ids": [[1, 2, 3], [4], [5, 6]], "a": [1.0, 2.0, 3.0]}, [7, 8, 9])
TAKES_MASK = TokenRules(masked=True)


@pytest.mark.parametrize("columns", ["ids", {"input_ids": "ids"}])
def test_ragged_ids_are_padded_for_a_model_that_takes_a_mask(columns):
    made = encoder(IDS, columns, rules=TAKES_MASK)
    assert made.lengths.tolist() == [3, 1, 2]
    batch = made.batch(np.array([1, 2]))
    ids = (
        batch.kwargs["input_ids"]
        if batch.kwargs.get("input_ids") is not None
        else (batch.args[0])
    )
    assert ids.tolist() == [[4, 0], [5, 6]]
    assert batch.kwargs["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch.padding.lengths.tolist() == [1, 2]
    assert batch.padding.width == 2


def test_the_users_own_mask_wins():
    frame = IDS.assign(mask=[[1, 1, 0], [0], [1, 1]])
    columns = {"input_ids": "ids", "attention_mask": "mask"}
    batch = encoder(frame, columns, rules=TAKES_MASK).batch(slice(0, 2))
    assert batch.kwargs["attention_mask"].tolist() == [[1, 1, 0], [0, 0, 0]]


def test_a_missing_row_of_ids_fails_only_its_batch():
    frame = pd.DataFrame({"ids": [[1, 2], None, [3]]})
    made = encoder(frame, "ids", rules=TAKES_MASK)
    assert made.batch(np.array([0, 2])).padding.lengths.tolist() == [2, 1]
    with pytest.raises(InputError, match="row 1 is missing"):
        made.batch(slice(0, 2))


# Rows of a ragged tensor column were only compared with those of their own batch.
@pytest.mark.parametrize(
    "dtype",
    [object, pd.ArrowDtype(pa.list_(pa.int64())), TensorDtype("int64", (None,))],
    ids=repr,
)
def test_ragged_rows_are_refused_without_a_mask(dtype):
    ids = pd.Series([[1, 2], [3], [4, 5]], [7, 8, 9], dtype)
    made = encoder(ids.to_frame("ids"), "ids")
    assert only(made.batch(np.array([0, 2]))).tolist() == [[1, 2], [4, 5]]
    with pytest.raises(InputError, match='"ids": row 8 '):
        made.batch(slice(1, 2))


def test_preprocess_sees_the_rows_with_the_named_columns():
    seen = []
    made = encoder(FRAME, ["a", "x"], preprocess=lambda f: seen.append(f) or f)
    batch = made.batch(np.array([4, 1]))
    pd.testing.assert_frame_equal(seen[0], FRAME[["a", "x"]].iloc[[4, 1]])
    assert only(batch).tolist() == [[2.0, 4.0], [0.5, 1.0]]
    assert made.lengths is None


def test_preprocess_may_change_its_frame():
    def scale(frame):
        frame["a"] *= 10
        return frame

    made = encoder(FRAME, "a", preprocess=scale)
    for _ in range(2):
        batch = made.batch(slice(1, 3))
        assert only(batch).tolist() == [5.0, 10.0]
        assert batch.frame["a"].tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("columns", "given", "shape"),
    [
        (None, lambda f: f[["a", "x"]], (5, 2)),
        (None, lambda f: f[["a"]], (5, 1)),
        (["a", "x"], lambda f: f.assign(z=1.0), (5, 2)),
        (["t"], lambda f: pd.DataFrame({"u": f.t.str.len(), "w": 1.0}), (5, 2)),
        (["t"], lambda f: f.t.str.len(), (5,)),
        ("a", lambda f: f, (5,)),
        ("a", lambda f: f.to_numpy(), (5, 1)),
        ("a", lambda f: torch.zeros(len(f), 3, 2), (5, 3, 2)),
        ("a", lambda f: [torch.zeros(3)] * len(f), (5, 3)),
        ("a", lambda f: pd.DataFrame({"v": list(np.zeros((len(f), 4)))}), (5, 4)),
    ],
)
def test_what_preprocess_returns_goes_on(columns, given, shape):
    tensor = only(encoder(FRAME, columns, preprocess=given).batch(slice(0, 5)))
    assert tensor.shape == shape
    assert tensor.dtype == (
        torch.int64 if columns == ["t"] and len(shape) == 1 else (torch.float32)
    )


def test_tensors_of_preprocess_go_in_as_they_are():
    given = {"ids": torch.ones(5, 2, dtype=torch.int32), "flag": True}
    batch = encoder(FRAME, "a", preprocess=lambda f: given).batch(slice(0, 5))
    assert batch.args == ()
    assert batch.kwargs["ids"].dtype == torch.int32
    assert batch.kwargs["ids"].equal(given["ids"])
    assert batch.kwargs["ids"].data_ptr() != given["ids"].data_ptr()
    assert batch.kwargs["flag"] is True
    pair = encoder(FRAME, "a", preprocess=lambda f: (f.a, f.a > 1)).batch(slice(0, 5))
    assert [value.dtype for value in pair.args] == [torch.float32, torch.bool]


# NumPy was asked for the axes of such a list, and refuses to count them.
@pytest.mark.parametrize("rows", [slice(0, 5), slice(1, 2)], ids=["five", "one"])
@pytest.mark.parametrize("kind", [np.ones, torch.ones, lambda n: [1.0] * n])
def test_rows_of_any_length_go_from_preprocess_to_a_function(kind, rows):
    def given(frame):
        return [kind(1 + int(x)) for x in frame.x]

    batch = encoder(FRAME, "x", "numpy", preprocess=given).batch(rows)
    lengths = (1 + FRAME.x.iloc[rows]).tolist()
    assert [len(row) for row in only(batch)] == lengths


def test_lengths_of_a_mask_that_preprocess_returned():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    given = {"input_ids": mask, "attention_mask": mask}
    batch = encoder(FRAME, "t", preprocess=lambda f: given).batch(slice(0, 2))
    assert batch.padding.lengths.tolist() == [2, 1]
    assert (batch.padding.width, batch.padding.side) == (3, "right")
    given["attention_mask"] = mask.flip(1)
    batch = encoder(FRAME, "t", preprocess=lambda f: given).batch(slice(0, 2))
    assert (batch.padding.lengths.tolist(), batch.padding.side) == ([2, 1], "left")


def test_a_mask_with_holes_says_nothing_of_padding():  # section 4
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    given = {"input_ids": mask, "attention_mask": mask}
    batch = encoder(FRAME, "t", preprocess=lambda f: given).batch(slice(0, 2))
    assert batch.padding.lengths is None
    assert batch.padding.width == 0


def test_ids_are_padded_with_the_models_token_on_the_models_side():  # issue 9, row 6
    rules = TokenRules(masked=True, pad=3, left=True)
    columns = {"input_ids": "ids", "token_type_ids": "ids"}
    batch = encoder(IDS, columns, rules=rules).batch(slice(0, 2))
    assert batch.kwargs["input_ids"].tolist() == [[1, 2, 3], [3, 3, 4]]
    assert batch.kwargs["token_type_ids"].tolist() == [[1, 2, 3], [0, 0, 4]]
    assert batch.kwargs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.padding.side == "left"


def test_text_of_preprocess_is_tokenised():
    made = encoder(
        WORDS, "t", tokenizer=letters, preprocess=lambda f: f.assign(t=f.t.str.upper())
    )
    batch = made.batch(np.array([1, 0]))
    assert batch.kwargs["ids"].tolist() == [[67, 0], [65, 66]]
    assert batch.padding.lengths.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda f: f.iloc[:2], "returned 2 rows for 3"),
        (lambda f: torch.zeros(4, 2), "returned 4 rows for 3"),
        (lambda f: {"x": np.zeros(1)}, "returned 1 rows for 3"),
        (lambda f: None, "returned None"),
        (lambda f: f.t.to_numpy(object), "array of object"),
        (lambda f: f, '"t" holds text'),
    ],
)
# BM-17..21
def test_what_preprocess_must_not_return(given, message):
    made = encoder(FRAME, None, preprocess=given)
    with pytest.raises(InputError, match=message):
        made.batch(slice(0, 3))


def test_what_preprocess_raises_goes_through():
    def fail(frame):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        encoder(FRAME, "a", preprocess=fail).batch(slice(0, 1))


# DI-11
@pytest.mark.parametrize("interface", ["tensor", "numpy", "frame"])
def test_empty_partitions(interface):
    batch = encoder(FRAME.iloc[:0], ["a", "x"], interface).batch(slice(0, 0))
    assert tuple(only(batch).shape) == (0, 2)
    assert batch.rows == 0


def test_what_a_row_looks_like():
    made = encoder(FRAME, ["a", "x"])
    assert made.signature == encoder(FRAME.iloc[:2], ["a", "x"]).signature
    assert made.signature != encoder(FRAME, ["a"]).signature
    assert hash(made.signature)
    assert made.bytes_per_row == 8
    assert repr(made) == "<Encoder 5 rows, 1 arguments>"


# A factory may build a torch module: the client plans for arrays.
def test_columns_planned_as_arrays_become_the_models_tensors():
    stacked = only(encoder(FRAME, ["a", "x"], hint="numpy").batch(slice(2)))
    single = only(encoder(FRAME, "a", hint="numpy").batch(slice(2)))
    integers = only(encoder(FRAME, "x", hint="numpy").batch(slice(2)))
    dtypes = (stacked.dtype, single.dtype, integers.dtype)
    assert dtypes == (torch.float32, torch.float32, torch.int64)
    assert stacked.tolist() == [[0, 0], [0.5, 1]]


@pytest.mark.parametrize(
    ("columns", "fitted", "expected"),
    [
        (None, None, ["a", "x", "added"]),
        (None, ["a"], ["a"]),
        (["a"], None, ["a"]),
    ],
)
def test_an_estimator_is_given_what_preprocess_added(columns, fitted, expected):
    def add(frame):
        return frame.assign(added=1.0)

    frame = FRAME[["a", "x"]]
    inputs = resolve_inputs(
        frame.iloc[:0],
        columns,
        interface_hint="frame",
        feature_names=fitted,
        preprocess=True,
    )
    made = Encoder(frame, inputs, EncodeOptions("frame"), add)
    assert list(only(made.batch(slice(2))).columns) == expected


def test_integers_are_taken_once_a_batch(monkeypatch):
    taken = []
    take = ArrayColumn.take
    monkeypatch.setattr(
        ArrayColumn, "take", lambda *given: taken.append(given[2]) or take(*given)
    )
    frame = pd.DataFrame({"x": pd.Series([1, 2], dtype=object)})
    inputs = resolve_inputs(frame, "x", interface_hint="tensor")
    batch = Encoder(frame, inputs, EncodeOptions("tensor")).batch(slice(0, 2))
    assert (batch.args[0].tolist(), len(taken)) == ([1, 2], 1)
