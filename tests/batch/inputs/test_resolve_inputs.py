"""What `columns=` means, and what is refused before anything runs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dask_infer.batch.inputs.decided_dtypes import all_integers, with_integers
from dask_infer.batch.inputs.preprocessed import as_columns
from dask_infer.batch.inputs.resolve_inputs import resolve_inputs
from dask_infer.batch.tensor.tensor_array import TensorDtype
from dask_infer.errors import InputError
from dask_infer.spec import Argument, Inputs

FLOATS, INTS = pd.ArrowDtype(pa.float32()), pd.ArrowDtype(pa.int16())


def meta(**dtypes):
    return pd.DataFrame({name: pd.Series(dtype=d) for name, d in dtypes.items()})


def resolve(frame, columns, interface="tensor", **options):
    return resolve_inputs(frame, columns, interface_hint=interface, **options)


ABX = meta(a="float32", b="float64", x="int32")


TOKENIZER = {"tokenizer": True}


@pytest.mark.parametrize(
    ("columns", "arguments"),
    [
        (None, [Argument(("a", "b", "x"), None, True, dtype="floating")]),
        ("a", [Argument(("a",), dtype="floating")]),
        ("x", [Argument(("x",), dtype="int64")]),
        (["a", "b"], [Argument(("a", "b"), None, True, dtype="floating")]),
        (["x"], [Argument(("x",), None, True, dtype="floating")]),
        (pd.Index(["a"]), [Argument(("a",), None, True, dtype="floating")]),
        (
            ("x", ["a", "b"]),
            [
                Argument(("x",), dtype="int64"),
                Argument(("a", "b"), None, True, dtype="floating"),
            ],
        ),
        (("a", "a"), [Argument(("a",), dtype="floating")] * 2),
        (
            {"ids": "x", "dense": ["a", "b"]},
            [
                Argument(("x",), "ids", dtype="int64"),
                Argument(("a", "b"), "dense", True, dtype="floating"),
            ],
        ),
    ],
)
# SP-07..13
def test_columns_of_a_tensor_model(columns, arguments):
    inputs = resolve(ABX, columns)
    assert list(inputs.arguments) == arguments
    assert inputs.named == (columns is not None)
    assert resolve(ABX, as_columns(inputs)).arguments == inputs.arguments


def test_columns_handed_on_are_those_named_once_each():
    assert resolve(ABX, ("x", ["b", "x"])).columns == ("x", "b")
    assert resolve(ABX, None).columns == ("a", "b", "x")


@pytest.mark.parametrize(
    ("dtype", "content", "shape", "cast"),
    [
        ("float16", "number", (), "floating"),
        ("Float64", "number", (), "floating"),
        (FLOATS, "number", (), "floating"),
        (pd.ArrowDtype(pa.decimal128(9, 2)), "number", (), "floating"),
        ("uint8", "number", (), "int64"),
        ("Int64", "number", (), "int64"),
        (INTS, "number", (), "int64"),
        ("bool", "number", (), "bool"),
        ("boolean", "number", (), "bool"),
        (TensorDtype("float32", (2, 3)), "list", (2, 3), "floating"),
        (TensorDtype("uint8", (4,)), "list", (4,), "int64"),
        (pd.ArrowDtype(pa.list_(pa.float64(), 3)), "list", (3,), "floating"),
        (pd.ArrowDtype(pa.list_(pa.int32())), "list", None, "int64"),
        ("object", "object", None, None),
    ],
    ids=str,
)
# SP-31..33
def test_what_dtypes_show(dtype, content, shape, cast):
    (argument,) = resolve(meta(c=dtype), "c").arguments
    assert (argument.content, argument.shape, argument.dtype) == (content, shape, cast)


@pytest.mark.parametrize(
    ("shapes", "schema", "shape"),
    [
        ({"c": (2, 3)}, None, (2, 3)),
        ({"c": 6}, None, (6,)),
        (None, {"c": (6,)}, (6,)),
        ({"c": [2, 3]}, {"c": (6,)}, (2, 3)),
        ({"c": (2, 3)}, {"c": (None,)}, (2, 3)),
        (None, {"c": (None,)}, (None,)),
    ],
)
def test_row_shapes_of_object_columns(shapes, schema, shape):
    inputs = resolve(meta(c="object"), "c", shapes=shapes, schema=schema)
    assert inputs.arguments == (Argument(("c",), content="list", shape=shape),)


def test_a_single_list_column_alone_is_not_stacked():
    inputs = resolve(meta(c=TensorDtype("float32", (3,))), None)
    assert not inputs.arguments[0].stacked
    assert not inputs.named


@pytest.mark.parametrize("columns", ["note", ["note"], None])
def test_text_through_a_tokenizer(columns):
    inputs = resolve(meta(note="str"), columns, tokenizer=True)
    assert inputs.arguments == (Argument(("note",), content="text"),)
    assert inputs.tokenized


def test_objects_are_the_text_where_nothing_else_is():
    inputs = resolve(meta(note="object", a="float32"), ("note", ["a"]), tokenizer=True)
    assert [argument.content for argument in inputs.arguments] == ["text", "number"]


@pytest.mark.parametrize("interface", ["numpy", "frame"])
def test_other_models_get_the_columns_own_dtypes(interface):
    frame = meta(a="float64", x="int8", when="datetime64[ns]", note="str")
    for name in frame:
        (argument,) = resolve(frame, name, interface).arguments
        assert argument.dtype is None


@pytest.mark.parametrize(
    ("columns", "fitted", "read"),
    [
        (None, ["x", "a"], ("x", "a")),
        (None, None, ("a", "b", "x")),
        (["b"], ["x", "a"], ("b",)),
        (("b", ["a"]), None, ("b", "a")),
    ],
)
# DM-01..08
def test_estimators_read_one_frame(columns, fitted, read):
    inputs = resolve(ABX, columns, "frame", feature_names=fitted)
    assert inputs.arguments == (Argument(read, None, True, "object", None),)
    assert inputs.columns == read


def test_labels_may_be_numbers():
    frame = pd.DataFrame(np.zeros((0, 3), "float32"))
    assert resolve(frame, 0).arguments[0].columns == (0,)
    assert resolve(frame, [1, 2]).arguments[0].columns == (1, 2)


LISTS = TensorDtype("float32", (4,))
TEXT_LISTS = pd.ArrowDtype(pa.list_(pa.string()))


@pytest.mark.parametrize(
    ("columns", "dtypes", "options", "message"),
    [
        ("scor", {"score": float}, {}, '"scor", .* did you mean "score"\\? .*col'),
        ([7], {"a": float}, {}, "names 7, .* the columns are"),
        ([], {"a": float}, {}, "selects no column"),
        ((), {"a": float}, {}, "selects no column"),
        ({}, {"a": float}, {}, "selects no column"),
        (None, {}, {}, "selects no column"),
        (["a", "a"], {"a": float}, {}, '"a" twice'),
        ({"a"}, {"a": float}, {}, "neither a column nor a list"),
        ((("a",),), {"a": float}, {}, "neither a column nor a list"),
        ({"no name": "a"}, {"a": float}, {}, "names of the model's arguments"),
        (["a", "v"], {"a": float, "v": LISTS}, {}, '"v" holds lists; .*columns="v"'),
        (["v"], {"v": "object"}, {"schema": {"v": (3,)}}, '"v" holds lists'),
        (None, {"a": float, "t": "str"}, {}, '"t" holds text; pass .* or tokenizer='),
        ("t", {"t": "str"}, {}, "convert-string"),
        ("t", {"t": "str"}, {"shapes": {"t": 3}}, "holds text; .*convert-string"),
        (["a", "t"], {"a": float, "t": "str"}, {"tokenizer": True}, '"t", \\[\\.\\.'),
        ("a", {"a": float}, {"tokenizer": True}, "no column .* holds text"),
        (("s", "t", "u"), dict.fromkeys("stu", "str"), TOKENIZER, "one column of t"),
        ("d", {"d": "datetime64[ns]"}, {}, '"d" holds dates or times; .*preprocess='),
        ("d", {"d": "timedelta64[ns]"}, {}, "dates or times"),
        ("d", {"d": "period[D]"}, {}, "dates or times"),
        ("c", {"c": "category"}, {}, "categories; .*cat.codes"),
        ("c", {"c": "complex64"}, {}, "complex numbers"),
        ("b", {"b": pd.ArrowDtype(pa.binary())}, {}, "bytes; .*decode"),
        ("l", {"l": TEXT_LISTS}, {}, "cannot become a tensor"),
        ("a", {"a": float}, {"shapes": {"z": 3}}, 'shapes= names "z"'),
        ("a", {"a": float}, {"shapes": {"a": 3}}, "one value a row"),
        ("o", {"o": "object"}, {"shapes": {"o": (0, 2)}}, "positive whole numbers"),
        ("o", {"o": "object"}, {"shapes": {"o": ()}}, "positive whole numbers"),
        ("o", {"o": "object"}, {"shapes": {"o": "ab"}}, "positive whole numbers"),
        ("v", {"v": LISTS}, {"shapes": {"v": (3, 3)}}, "as many numbers"),
    ],
)
# ON-10..12
def test_refused_when_the_call_is_built(columns, dtypes, options, message):
    with pytest.raises(InputError, match=message):
        resolve(meta(**dtypes), columns, **options)


def test_two_columns_of_one_name_are_refused():
    frame = pd.DataFrame(np.zeros((0, 2)), columns=["a", "a"])
    with pytest.raises(InputError, match='two columns are named "a"'):
        resolve(frame, None)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (None, {"feature_names": ["a", "y"]}, 'estimator needs "y"'),
        ({"X": ["a"]}, {}, "one frame"),
        ("a", {"tokenizer": True}, "leave out tokenizer="),
    ],
)
def test_refused_for_estimators(columns, options, message):
    with pytest.raises(InputError, match=message):
        resolve(ABX, columns, "frame", **options)


def test_text_and_numbers_are_not_stacked_for_callables():
    with pytest.raises(InputError, match="holds text"):
        resolve(meta(a="float32", t="str"), None, "numpy")


@pytest.mark.parametrize("interface", ["tensor", "numpy", "frame"])
def test_preprocess_defers_dtypes_to_the_worker(interface):
    frame = meta(t="str", d="datetime64[ns]", a="float32")
    inputs = resolve(frame, None, interface, preprocess=True)
    assert inputs.columns == ("t", "d", "a")
    assert resolve(frame, "t", interface, preprocess=True).columns == ("t",)


def test_preprocess_does_not_excuse_unknown_columns():
    with pytest.raises(InputError, match='names "z"'):
        resolve(ABX, ["z"], preprocess=True)


@pytest.mark.parametrize(
    ("columns", "integers"),
    [(["x", "y"], True), (["x", "a"], False), ("x", True), (["m"], False)],
)
def test_all_integers(columns, integers):
    frame = meta(a="float32", x="int32", y="Int64", m="bool")
    (argument,) = resolve(frame, columns).arguments
    assert all_integers(frame, argument) is integers


def test_only_stacked_integers_become_integers():
    frame = meta(a="float32", x="int32", y="Int64")
    inputs = resolve(frame, (["x", "y"], ["x", "a"], "a"))
    changed = with_integers(inputs, frame, True)
    assert [a.dtype for a in changed.arguments] == ["int64", "floating", "floating"]
    assert with_integers(changed, frame, False) == inputs
    assert isinstance(changed, Inputs)


def test_the_client_needs_no_torch():
    module = "dask_infer.batch.inputs.resolve_inputs"
    code = f"import {module}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
