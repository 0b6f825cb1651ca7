"""What models of any library return becomes NumPy arrays that nothing else changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer.batch.outputs.convert import cast_array, numbers, owned, to_array
from dask_infer.errors import OutputError
from dask_infer.spec import OutputColumn

VALUES = np.array([[0.0, 1.0], [2.0, 0.0]], "float32")
COLUMN = OutputColumn("x", "float32", (2,))


@pytest.mark.parametrize(
    "output",
    [
        VALUES,
        VALUES.tolist(),
        torch.tensor(VALUES),
        torch.tensor(VALUES).bfloat16(),
        torch.tensor(VALUES).to_sparse(),
        torch.tensor(VALUES).requires_grad_(),
        list(torch.tensor(VALUES)),
    ],
    ids=lambda output: type(output).__name__,
)
def test_outputs_of_any_library_become_arrays(output):
    np.testing.assert_array_equal(to_array(output), VALUES)


def test_sparse_matrices_become_dense():
    sparse = pytest.importorskip("scipy.sparse")
    np.testing.assert_array_equal(to_array(sparse.csr_matrix(VALUES)), VALUES)


def test_rows_of_different_lengths_name_the_remedy():
    with pytest.raises(OutputError, match="different lengths; pad them"):
        to_array([[1.0], [1.0, 2.0]])


def test_missing_rows_are_set_apart():
    found, missing = numbers([[1.0, 2.0], None, pd.NA], COLUMN, np.dtype("float32"))
    assert missing.tolist() == [False, True, True]
    assert found[0].tolist() == [1.0, 2.0]
    assert numbers(VALUES, COLUMN, VALUES.dtype) == (VALUES, None)


def test_objects_are_built_anew():
    tensor = torch.ones(2)
    row = {"scores": [tensor]}
    own = owned(row)
    tensor.zero_()
    row["scores"].clear()
    assert own["scores"][0].tolist() == [1.0, 1.0]


def test_integers_that_do_not_fit_are_an_error_of_a_row():
    column = OutputColumn("x", "int8")
    with pytest.raises(OutputError, match="values that do not fit") as raised:
        cast_array(np.array([300]), np.dtype("int8"), column, cast=True)
    assert raised.value.of_a_row
