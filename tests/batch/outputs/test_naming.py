from __future__ import annotations

import pytest

from dask_infer.batch.outputs.naming import (
    check_naming,
    name_meta_columns,
    name_values,
)
from dask_infer.batch.outputs.parse_meta import OutputValue
from dask_infer.errors import OutputError

SCALAR = OutputValue(None, "float32", ())
VECTOR = OutputValue(None, "float32", (3,))
LOGITS = OutputValue("logits", "float32", (2,))
HIDDEN = OutputValue("hidden", "float32", (7,))
FIRST, SECOND = OutputValue(0, "float32", ()), OutputValue(1, "int64", (2,))


def named(found, output=None):
    """What `output` makes of the values: {name: (field, shape, index)}."""
    columns = name_values(found, output)
    return {c.name: (c.field, c.shape, c.index) for c in columns}


@pytest.mark.parametrize(
    "found, output, expected",
    [
        ([SCALAR], None, {"prediction": (None, (), None)}),
        ([SCALAR], "score", {"score": (None, (), None)}),
        ([SCALAR], ["score"], {"score": (None, (), None)}),
        ([VECTOR], None, {"prediction": (None, (3,), None)}),
        ([VECTOR], "v", {"v": (None, (3,), None)}),
        ([VECTOR], list("abc"), {n: (None, (), i) for i, n in enumerate("abc")}),
        ([LOGITS], None, {"logits": ("logits", (2,), None)}),
        ([LOGITS], "score", {"score": ("logits", (2,), None)}),
        ([LOGITS], ["score"], {"score": ("logits", (2,), None)}),
        ([LOGITS], ["n", "p"], {"n": ("logits", (), 0), "p": ("logits", (), 1)}),
        ([LOGITS, HIDDEN], "hidden", {"hidden": ("hidden", (7,), None)}),
        ([LOGITS, HIDDEN], {"logits": "s"}, {"s": ("logits", (2,), None)}),
        ([LOGITS, HIDDEN], ["hidden"], {"hidden": ("hidden", (7,), None)}),
        (
            [LOGITS, HIDDEN],
            ["a", "b"],
            {"a": ("logits", (2,), None), "b": ("hidden", (7,), None)},
        ),
        (
            [FIRST, SECOND],
            None,
            {"prediction_0": (0, (), None), "prediction_1": (1, (2,), None)},
        ),
        ([FIRST, SECOND], ["a", "b"], {"a": (0, (), None), "b": (1, (2,), None)}),
        ([FIRST, SECOND], {1: "b"}, {"b": (1, (2,), None)}),
        ([FIRST], None, {"prediction_0": (0, (), None)}),
    ],
)
def test_names(found, output, expected):
    assert named(found, output) == expected


@pytest.mark.parametrize(
    "found, output, message",
    [
        ([VECTOR], ["a", "b"], r"names 2, the model returns 3 columns"),
        ([SCALAR], ["a", "b"], r"names 2, the model returns 1 column;"),
        (
            [OutputValue(None, "f4", (2, 2))],
            ["a", "b"],
            r"returns rows of shape \(2, 2\)",
        ),
        ([FIRST, SECOND], ["a"], r"names 1, the model returns 2 arrays: 0, 1"),
        ([LOGITS, HIDDEN], {"x": "s"}, r"no 'x', only 'logits', 'hidden'; pick and"),
        ([LOGITS, HIDDEN], "score", r"no 'score', only 'logits', 'hidden'"),
        ([LOGITS, HIDDEN], ["logits", "x"], r"no 'x', only 'logits', 'hidden'"),
        ([SCALAR], {"logits": "s"}, r'without a name; pass output="name"'),
    ],
)
def test_names_that_do_not_fit_are_refused(found, output, message):
    with pytest.raises(OutputError, match=message):
        name_values(found, output)


@pytest.mark.parametrize("output", [3, [], {}, ["a", 1], {"a": ["b"]}, object()])
def test_output_of_another_kind_is_refused(output):
    with pytest.raises(ValueError, match="names no columns; pass a name"):
        check_naming(output)


@pytest.mark.parametrize("output", [["a", "a"], {"x": "a", "y": "a"}])
def test_same_name_twice_is_refused(output):
    with pytest.raises(ValueError, match="two columns the same name"):
        check_naming(output)


def test_same_value_twice_is_fine():  # PP-6
    columns = name_values([LOGITS, OutputValue("again", "float32", (2,))], None)
    assert [c.name for c in columns] == ["logits", "again"]


def test_only_picked_values_need_all_rows():
    found = [
        OutputValue(0, "float32", (), rows=8),
        OutputValue(1, "float32", (8, 4), rows=1),
    ]
    assert name_values(found, {0: "out"}, rows=8)[0].field == 0
    assert [column.field for column in name_values(found, None, rows=8)] == [0]
    with pytest.raises(OutputError, match="1 rows for 8 in field 1"):
        name_values(found, {1: "out"}, rows=8)


def test_lists_of_text_are_objects_and_of_complex_refused():
    (column,) = name_values([OutputValue(None, "string", (2,))], None)
    assert (column.dtype, column.shape) == ("object", ())
    with pytest.raises(OutputError, match="only numbers can be lists"):
        name_values([OutputValue(None, "complex64", (2,))], None)


@pytest.mark.parametrize(
    "declared, output, expected",
    [
        ([None], None, {"prediction": None}),
        ([None], "s", {"s": None}),
        ([None], ["a", "b"], {"a": "a", "b": "b"}),
        ([None], {"logits": "s"}, {"s": "logits"}),
        (["a", "b"], None, {"a": "a", "b": "b"}),
        (["a", "b"], ["b", "a"], {"b": "b", "a": "a"}),
        (["s"], {"logits": "s"}, {"s": "logits"}),
    ],
)
def test_declared_names(declared, output, expected):
    columns = name_meta_columns(
        [OutputValue(name, "float32") for name in declared], output
    )
    assert {c.name: c.field for c in columns} == expected


@pytest.mark.parametrize(
    "names, output, message",
    [
        (["a"], "b", r"output= names \['b'\], meta= names \['a'\]; name the same"),
        (["a", "b"], ["a"], "name the same columns in both"),
        (["a", "a"], None, "a column twice"),
    ],
)
def test_declared_names_must_agree(names, output, message):
    with pytest.raises(ValueError, match=message):
        name_meta_columns([OutputValue(name, "float32") for name in names], output)
