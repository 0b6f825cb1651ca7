"""What a pass does with batches that fail."""

from __future__ import annotations

from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pytest

from dask_infer.run.sweep import sweep_runner

from .test_sweep import CUT, faulty


def test_rows_underway_are_those_of_batches_that_are_not_back(
    pdf: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(sweep_runner, "set_level", lambda name, rows: seen.append(rows))
    dd.from_pandas(pdf, npartitions=1).infer.predict(
        faulty(tmp_path / "log", above=1.0), parallel=CUT,
        on_error="null", batch_size=64,
    ).compute(scheduler="sync")  # fmt: skip
    assert seen[-1] == 0 < seen[-2]
