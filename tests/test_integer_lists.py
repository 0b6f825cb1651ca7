"""Lists of integers go in as what the model reads: API section 3, "Lists"."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import pandas as pd
import pyarrow as pa
import pytest
import torch

import dask_infer  # noqa: F401
from dask_infer.errors import InputError

ROWS = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 1, 2]]
DTYPES = {
    "objects": object,
    "fixed": pd.ArrowDtype(pa.list_(pa.int64(), 3)),
    "variable": pd.ArrowDtype(pa.list_(pa.int32())),
}


class Embedded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 1)
        self.table.weight.data = torch.arange(10.0)[:, None]

    def forward(self, x):
        return self.table(x).sum((1, 2))


class Cast(Embedded):
    """Reads both, and would round large numbers that come as floats."""

    def forward(self, x):
        return x.long().sum(1) * 1.0


class Weighted(torch.nn.Linear):
    """Reads floats."""

    def __init__(self):
        super().__init__(3, 1, bias=False)
        torch.nn.init.ones_(self.weight)


def collection(dtype, rows=ROWS, partitions=2):
    frame = pd.DataFrame({"x": pd.Series(rows, dtype=DTYPES[dtype])})
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_pandas(frame, npartitions=partitions)


@pytest.mark.parametrize("columns", ["x", {"x": "x"}])
@pytest.mark.parametrize("meta", [None, "float32"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", [Embedded, Cast, Weighted])
def test_lists_of_integers_go_in_as_what_the_model_reads(model, dtype, meta, columns):
    if model is Weighted and columns != "x":
        columns = {"input": "x"}
    ddf = collection(dtype)
    pred = ddf.infer.predict(model(), columns=columns, shapes={"x": 3}, meta=meta)
    assert pred.prediction.dtype == "float32"
    assert pred.prediction.compute().tolist() == [6, 15, 24, 3]


@pytest.mark.parametrize("dtype", DTYPES)
def test_preprocess_keeps_what_was_found_of_a_list(dtype):
    for model in (Embedded(), Weighted()):
        pred = collection(dtype).infer.predict(
            model, columns="x", shapes={"x": 3}, preprocess=lambda frame: frame.copy()
        )
        assert pred.prediction.compute().tolist() == [6, 15, 24, 3]


def test_large_integers_in_objects_are_not_rounded():
    class Low(torch.nn.Module):
        def forward(self, x):
            return (x.long()[:, 0] % 2).float()

    rows = [[2**24 + 1], [2**53 + 1]]
    pred = collection("objects", rows).infer.predict(Low(), shapes={"x": 1})
    assert pred.prediction.compute().tolist() == [1, 1]


@pytest.mark.parametrize("rows", [ROWS, [[0.5, 1.5, 4.0]]])
def test_objects_are_floating_where_the_output_would_follow_their_dtype(rows):
    class Sum(torch.nn.Module):
        def forward(self, x):
            return x.sum(1)

    pred = collection("objects", rows).infer.predict(Sum(), shapes={"x": 3})
    assert pred.prediction.dtype == "float32"
    assert pred.prediction.compute().tolist() == [sum(row) for row in rows]


def test_lists_of_unequal_length_name_the_mask_and_the_remedy():
    rows = [[1.0, 2.0], [3.0, 4.0], [5.0]]
    pred = collection("objects", rows, 1).infer.predict(
        torch.nn.Linear(2, 1), columns="x", meta="float32"
    )
    with pytest.raises(InputError, match=r"row 2 holds 1 .*attention_mask.*preproc"):
        pred.compute()


def test_lists_of_integers_on_a_cluster(client):
    for model in (Embedded(), Weighted()):
        pred = collection("objects").infer.predict(model, columns="x", shapes={"x": 3})
        assert pred.prediction.compute().tolist() == [6, 15, 24, 3]


def test_what_a_model_reads_is_asked_for_each_call():
    """A replica is shared: other arguments of a call may make it read other dtypes."""

    class Either(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding.from_pretrained(torch.eye(4))
            self.line = torch.nn.Linear(2, 1)

        def forward(self, x, embed=False):
            return self.table(x)[:, 0, 1] if embed else self.line(x)[:, 0]

    frame = pd.DataFrame({"a": [0, 1, 2], "b": [3, 3, 3]})
    ddf, model = dd.from_pandas(frame, npartitions=1), Either()
    for embed in (False, True, False):
        pred = ddf.infer.predict(model, call_kwargs={"embed": embed}, meta="float32")
        found = pred.prediction.compute(scheduler="sync").tolist()
        assert not embed or found == [0, 1, 0]
