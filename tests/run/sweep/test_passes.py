"""What a pass does with batches that fail."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.dataframe as dd
import pandas as pd
import pytest
import torch

from dask_infer.run.sweep import sweep_runner
from dask_infer.run.sweep.activations import Activations
from dask_infer.run.sweep.passes import Sweep, SweptBatch

from .test_sweep import CUT, faulty


def test_a_cut_without_room_for_all_pieces_keeps_none(tmp_path: Path) -> None:
    def fail(*args: Any) -> None:
        raise ValueError

    runner: Any = SimpleNamespace(forward=fail, parts_after=lambda *args: 2)
    sweep = Sweep(SimpleNamespace(), [{"x": 0}])
    # Room for the batch and the first half; the second cannot be written.
    sweep.activations = Activations(24, str(tmp_path / "missing"))
    carry = sweep.activations.put({"x": torch.zeros(4, 1)})
    (piece,) = SweptBatch(runner, 4, 0, carry, None).pieces
    assert sweep.run(piece, None, 0) == ([piece], False)
    assert piece.failed
    assert sweep.activations.held == 0


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
