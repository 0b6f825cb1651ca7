"""What the contenders run, importable by workers, so that no task carries code."""

from __future__ import annotations

import numpy as np
import pandas as pd


def make_frame(number: int, rows: int) -> pd.DataFrame:
    """Rows of one partition, as cheap as a frame can be."""
    block = np.zeros((rows, 4), np.float32)
    return pd.DataFrame(block, columns=list("abcd"), copy=False)


def identity(frame: pd.DataFrame) -> pd.DataFrame:
    """Baseline: a partition goes in and comes out."""
    return frame


def assign(frame: pd.DataFrame) -> pd.DataFrame:
    """Baseline that adds a column, as every prediction does."""
    return frame.assign(prediction=frame["a"].to_numpy())


def noop(batch: np.ndarray) -> np.ndarray:
    """Return what came in."""
    return batch


def count(frame: pd.DataFrame) -> pd.Series:
    """One number a partition, so that no result is worth measuring."""
    return pd.Series([len(frame)])
