from __future__ import annotations

import dataclasses
import types
from collections import namedtuple
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from dask_infer.batch.outputs.fields import traced_fields

ONE, TWO = torch.zeros(4), torch.ones(4, 2)

Pair = namedtuple("Pair", "score label")


@dataclasses.dataclass
class Scored:
    score: Any
    loss: Any = None


def keys(output):
    return [key for key, _ in traced_fields(output, 4)]


@pytest.mark.parametrize(
    "output, expected",
    [
        (ONE, [None]),
        (ONE.numpy(), [None]),
        (pd.Series([1.0, 2.0], name="s"), [None]),
        (["a", "b"], [None]),
        (("a", "b"), [None]),
        ([0.5, None], [None]),
        ([[1, 2], [3]], [None]),
        ({"a": ONE, "b": TWO}, ["a", "b"]),
        (Scored(ONE), ["score"]),
        (Pair(ONE, TWO), ["score", "label"]),
        (torch.max(TWO, dim=1), ["values", "indices"]),
        (types.SimpleNamespace(score=ONE), ["score"]),
        ((ONE, TWO), [0, 1]),
        ([ONE, TWO], [0, 1]),
        (list(TWO), [None]),
        ([torch.zeros(2, 2)] * 4, [None]),
        ((["a"], [0.5]), [0, 1]),
        ((ONE,), [0]),
        (pd.DataFrame({"a": [1], "b": [2]}), ["a", "b"]),
        (np.zeros(2, [("a", "f4"), ("b", "i8")]), ["a", "b"]),
        (pa.table({"a": [1]}), ["a"]),
        ([{"a": 1}, {"a": 2, "b": "x"}], ["a", "b"]),
        ([Pair(1, "x")], ["score", "label"]),
        ([Scored(1.0)], ["score", "loss"]),
        (None, []),
        (3, []),
        (torch.tensor(1.0), []),
    ],
)
def test_structure(output, expected):  # SP-14, SP-15
    assert keys(output) == expected


def test_tensors_of_a_dict_become_fields_never_its_keys():  # BM dict
    ((name, value),) = traced_fields({"score": ONE}, 4)
    assert (name, value is ONE) == ("score", True)


def test_scalars_none_and_nested_structures_are_dropped():  # PP-6
    output = {
        "loss": torch.tensor(1.0),
        "logits": TWO,
        "count": 3,
        "absent": None,
        "hidden_states": (TWO, TWO),
        "attentions": [TWO],
        "cache": [(TWO, TWO)],
        "size": torch.Size([4, 2]),
        "nested": {"a": ONE},
    }
    assert keys(output) == ["logits"]


def test_position_of_a_tensor_counts_what_was_dropped():
    lstm = torch.nn.LSTM(2, 3, batch_first=True)
    assert keys(lstm(torch.zeros(4, 5, 2))) == [0]
    assert keys((torch.tensor(1.0), None, TWO)) == [2]


def test_model_output():
    modeling = pytest.importorskip("transformers.modeling_outputs")
    output = modeling.SequenceClassifierOutput(
        loss=torch.tensor(1.0), logits=TWO, hidden_states=(TWO, TWO)
    )
    assert keys(output) == ["logits"]


def test_rows_of_dicts_are_turned_around():
    rows = [{"a": 1, "b": "x"}, {"b": "y"}, {"a": 3}]
    assert traced_fields(rows, 3) == [("a", [1, None, 3]), ("b", ["x", "y", None])]


def test_rows_of_tensors_are_stacked():
    ((_, value),) = traced_fields([{"v": TWO[0]}, {"v": TWO[1]}], 2)
    assert torch.equal(value, TWO[:2])
    ((_, value),) = traced_fields([torch.tensor(1.0), torch.tensor(2.0)], 2)
    assert value.tolist() == [1.0, 2.0]


def test_sparse_matrix_is_one_value():
    sparse = pytest.importorskip("scipy.sparse")
    assert keys(sparse.csr_matrix(np.eye(3))) == [None]
