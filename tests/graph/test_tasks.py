"""A partition's result has the dtypes that its meta promised."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from dask.base import tokenize

from dask_infer.accessor import _to_numpy
from dask_infer.graph.tasks import _result
from dask_infer.spec import Blob

FRAME = pd.DataFrame({"a": [1.0, 2.0]}, index=[7, 7])


@pytest.mark.parametrize("emit", [("s", "n"), ("a", "s", "n")])
def test_objects_stay_objects_though_they_hold_text(emit):
    texts = np.array(["p", "q"], dtype=object)
    result = _result(FRAME, {"s": texts, "n": np.ones(2, "float32")}, emit)
    assert tuple(result.columns) == emit
    assert result.columns.dtype == pd.DataFrame({"s": []}).columns.dtype
    assert result["s"].dtype == object
    assert result["s"].tolist() == ["p", "q"]
    assert result["n"].dtype == "float32"
    assert result.index.tolist() == [7, 7]


def test_blobs_differ_by_their_content():
    assert tokenize(Blob("k", b"one")) == tokenize(Blob("k", b"two"))
    assert tokenize(Blob("k")) != tokenize(Blob("other"))


@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_lists_read_back_as_objects_are_stacked(kind):
    rows = pd.Series([kind([1.0, 2.0]), kind([3.0, 4.0])], dtype=object)
    assert _to_numpy(rows, "float32").tolist() == [[1, 2], [3, 4]]
    with_missing = pd.concat([pd.Series([None], dtype=object), rows])
    assert _to_numpy(with_missing, None).shape == (3, 2)


def test_other_objects_stay_one_a_row():
    assert _to_numpy(pd.Series([None, "p"], dtype=object), None).tolist() == [None, "p"]
