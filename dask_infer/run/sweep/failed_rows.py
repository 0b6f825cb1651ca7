"""Batches of which rows failed in a pass, and what it made of each of their rows.

A pass has tried them apart already. So when the partition asks for some of the rows
again, in its own search for those that fail, nothing runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dask_infer.batch.inputs.batch import Batch
from dask_infer.faults.bisect import Rows
from dask_infer.run.sweep.passes import Piece, SweptBatch


class FailedRow(NamedTuple):
    """One row of a batch of which rows failed."""

    batch: Batch
    swept: SweptBatch
    #: Place of the row in it.
    place: int


class FailedRows:
    """Rows of a partition by their positions."""

    def __init__(self) -> None:
        self._rows: dict[int, FailedRow] = {}

    def add(self, rows: Rows, batch: Batch, swept: SweptBatch) -> None:
        """Remember a batch of these rows."""
        for place, row in enumerate(_as_array(rows).tolist()):
            self._rows[row] = FailedRow(batch, swept, place)

    def find(self, rows: Rows) -> tuple[Batch, SweptBatch, np.ndarray] | None:
        """Return rows as a batch, and where they are in the batch that failed.

        None where they are not all of one batch, or not in its order.
        """
        if not self._rows:
            return None
        known = [self._rows.get(row) for row in _as_array(rows).tolist()]
        found = [failed for failed in known if failed is not None]
        if len(found) < len(known) or len({id(f.swept) for f in found}) > 1:
            return None
        places = np.array([failed.place for failed in found])
        if (np.diff(places) <= 0).any():
            return None
        return _rows_of(found[0].batch, places), found[0].swept, places


def pieces_of(swept: SweptBatch, places: np.ndarray) -> list[tuple[Piece, np.ndarray]]:
    """Return the pieces that rows are in, and their places there."""
    found = [
        (piece, places[np.isin(places, piece.positions)] - piece.positions[0])
        for piece in swept.pieces
    ]
    return [(piece, rows) for piece, rows in found if len(rows)]


def _rows_of(batch: Batch, places: np.ndarray) -> Batch:
    """Return some rows of a batch whose tensors are gone, padded as they were."""
    lengths = batch.padding.lengths
    if lengths is not None:
        lengths = lengths[places]
    return replace(
        batch,
        padding=replace(batch.padding, lengths=lengths),
        rows=len(places),
        _frame=lambda: batch.frame.iloc[places],
    )


def _as_array(rows: Rows) -> np.ndarray:
    return np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
