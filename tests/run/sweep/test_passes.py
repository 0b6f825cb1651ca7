"""What a pass does with batches that fail."""

from __future__ import annotations

from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pytest

from dask_infer.replica.cache import cache
from dask_infer.replica.worker_place import current_place
from dask_infer.run.sweep import sweep_runner
from dask_infer.run.sweep.open_sweep import open_sweep

from .test_sweep import CUT, faulty


def test_a_group_that_others_hold_stays_until_they_leave(
    pdf: pd.DataFrame, tmp_path: Path
) -> None:
    """The next lease loaded a second copy beside theirs."""
    frame = dd.from_pandas(pdf, npartitions=1)
    pred = frame.infer.predict(faulty(tmp_path / "log"), parallel=CUT)
    loader = open_sweep(pred.expr.job, current_place()).loader
    loader.kept = 0
    with loader.lease(0) as one:
        with loader.lease(0):
            pass
        with loader.lease(0) as again:
            assert again is one
    assert one not in cache.replicas()


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
