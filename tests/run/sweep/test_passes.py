"""What a pass does with batches that fail."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from dask_infer.run.sweep.activations import Activations
from dask_infer.run.sweep.passes import Sweep, SweptBatch


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
