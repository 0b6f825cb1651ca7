"""A model with layers to sweep, and rows."""

from __future__ import annotations

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

ROWS = 203


@pytest.fixture
def pdf() -> pd.DataFrame:
    values = np.random.default_rng(5).normal(size=(ROWS, 2)).astype("float32")
    return pd.DataFrame(values, columns=["a", "b"], index=np.arange(ROWS) * 3)


@pytest.fixture
def ddf(pdf: pd.DataFrame) -> dd.DataFrame:
    return dd.from_pandas(pdf, npartitions=5)


@pytest.fixture
def model() -> torch.nn.Sequential:
    torch.manual_seed(11)
    layers: list[torch.nn.Module] = [torch.nn.Linear(2, 16)]
    for _ in range(4):
        layers += [torch.nn.Tanh(), torch.nn.Linear(16, 16)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(16, 1))


@pytest.fixture
def expected(pdf: pd.DataFrame, model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()


def near(result: pd.DataFrame, expected: np.ndarray, pdf: pd.DataFrame) -> None:
    """Every row once, in its place, and right."""
    assert result.index.equals(pdf.index)
    np.testing.assert_allclose(result["prediction"], expected, atol=1e-5)
