"""A model with layers to sweep, and rows."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

# The same model, what it gives for these rows, and how that is compared.
from tests.pipeline.conftest import expected, model, near  # noqa: F401

ROWS = 203


@pytest.fixture
def pdf() -> pd.DataFrame:
    values = np.random.default_rng(5).normal(size=(ROWS, 2)).astype("float32")
    return pd.DataFrame(values, columns=["a", "b"], index=np.arange(ROWS) * 3)


@pytest.fixture
def ddf(pdf: pd.DataFrame) -> dd.DataFrame:
    return dd.from_pandas(pdf, npartitions=5)
