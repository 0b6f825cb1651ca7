"""The rows of a partition still to do, as batches.

Out-of-memory puts rows back, so this is a queue and no plain list.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeAlias

import numpy as np

from dask_infer.batch.encode import Encoder
from dask_infer.batch.plan import plan_tokens
from dask_infer.batch.size import FixedSize
from dask_infer.replica.cache import Replica
from dask_infer.spec import Job

#: The rows of a batch: consecutive ones, or positions in the partition.
Rows: TypeAlias = "slice | np.ndarray"


class Work(Protocol):
    """Batches to run, each row in exactly one of them."""

    def take(self) -> Rows | None:
        """Rows of the next batch, or None when all are done."""

    def halve(self, rows: Rows) -> int:
        """Put rows back in smaller batches; return the rows of the next one."""

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a finished batch."""


class ConsecutiveWork:
    """Consecutive rows, as many at once as the size policy says."""

    def __init__(self, rows: int, size: FixedSize) -> None:
        self.rows = rows
        self.size = size
        self.start = 0

    def take(self) -> Rows | None:
        """Rows of the next batch."""
        if self.start >= self.rows:
            return None
        # The policy is shared by threads: read it once for each batch.
        stop = min(self.rows, self.start + self.size.size)
        batch = slice(self.start, stop)
        self.start = stop
        return batch

    def halve(self, rows: Rows) -> int:
        """Start again at the rows that failed, with a smaller size."""
        assert isinstance(rows, slice)
        self.start = rows.start
        self.size.on_out_of_memory(rows.stop - rows.start)
        return self.size.size

    def observe(self, rows: int, seconds: float) -> None:
        """Let the policy learn."""
        self.size.observe(rows, seconds)


class SortedWork:
    """Rows of similar length together, longest first, under a budget of tokens."""

    def __init__(self, lengths: np.ndarray, tokens: FixedSize, rows: int) -> None:
        self.lengths = lengths
        self.tokens = tokens
        self.rows = rows
        self.batches = deque(self._planned(np.arange(len(lengths))))

    def take(self) -> Rows | None:
        """Rows of the next batch."""
        return self.batches.popleft() if self.batches else None

    def halve(self, rows: Rows) -> int:
        """Plan what is left under half of the padded tokens that did not fit."""
        assert not isinstance(rows, slice)
        self.tokens.on_out_of_memory(len(rows) * int(self.lengths[rows].max()))
        rest = np.concatenate([rows, *self.batches])
        self.batches = deque(self._planned(rest))
        if len(self.batches[0]) >= len(rows):  # rows without tokens cost none
            self.rows = (len(rows) + 1) // 2
            self.batches = deque(self._planned(rest))
        return len(self.batches[0])

    def observe(self, rows: int, seconds: float) -> None:
        """Nothing to learn: the budget decides."""

    def _planned(self, rows: np.ndarray) -> list[np.ndarray]:
        plan = plan_tokens(self.lengths[rows], budget=self.tokens.size, rows=self.rows)
        return [rows[batch] for batch in plan]


#: Padded tokens of one forward where nobody says.
DEFAULT_TOKENS = 4096


def plan_work(
    rows: int, encoder: Encoder, job: Job, replica: Replica, free: int | None
) -> Work:
    """Return the batches of a partition under the job's limits.

    Sizes belong to the replica, so what once did not fit is known to all partitions.
    """
    size = replica.batch_size(
        encoder.signature, encoder.bytes_per_row, job.batch_size, free
    )
    if encoder.lengths is None or not job.row_wise or job.batch_tokens is None:
        return ConsecutiveWork(rows, size)
    budget = DEFAULT_TOKENS if job.batch_tokens == "auto" else job.batch_tokens
    tokens = replica.batch_size(("tokens", encoder.signature), 0, budget, None)
    return SortedWork(encoder.lengths, tokens, size.size if job.batch_size else rows)
