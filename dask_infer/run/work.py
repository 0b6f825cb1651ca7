"""The rows of a partition still to do, as batches.

Rows may come back while other batches are in flight (out-of-memory, a row that fails),
so this is a queue and no plain list.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from dask_infer.batch.inputs.encoder import Encoder
from dask_infer.batch.sizing.boundaries import plan_tokens
from dask_infer.batch.sizing.hill_climber import HillClimber
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.faults.bisect import Rows
from dask_infer.run.runner import Runner
from dask_infer.spec import Job


class Work:
    """Batches to run, each row in exactly one of them or in flight."""

    def __init__(self) -> None:
        #: Rows that came back, to be taken first.
        self.returned: deque[Any] = deque()

    def take(self) -> Rows | None:
        """Return the rows of the next batch, or None when none is left to be taken."""
        raise NotImplementedError

    def put_back(self, rows: Rows, pieces: Sequence[Rows]) -> None:
        """Take back the `rows` of a batch, to be run next in these pieces."""
        assert sum(map(row_count, pieces)) == row_count(rows)
        self.returned.extendleft(reversed(pieces))

    def halve(self, rows: Rows) -> int:
        """Put rows back in smaller batches; return the rows of the next one."""
        raise NotImplementedError

    def observe(self, rows: Rows, seconds: float) -> None:
        """Let the size policy learn from a finished batch."""
        raise NotImplementedError


class ConsecutiveWork(Work):
    """Consecutive rows, as many at once as the size policy says.

    With `wanted`, batches have about so many rows and are of equal size, rather than a
    small one last: stages that wait for each other are delayed by the largest. `size`
    still bounds them.
    """

    def __init__(
        self, rows: int, size: HillClimber, *, wanted: int | None = None
    ) -> None:
        super().__init__()
        self.rows = rows
        self.size = size
        self.wanted = wanted
        self.start = 0

    def take(self) -> Rows | None:
        """Rows of the next batch."""
        # The policy is shared by threads: read it once for each batch.
        size = self.size.size if self.size.settled else self.size.next_size()
        if self.returned:
            back: slice = self.returned.popleft()
            if back.stop - back.start <= size:
                return back
            stop = back.start + size
            self.returned.appendleft(slice(stop, back.stop))
            return slice(back.start, stop)
        if self.start >= self.rows:
            return None
        left = self.rows - self.start
        if self.wanted is not None:
            size = ceil(left / max(ceil(left / size), round(left / self.wanted)))
        stop = self.start + min(left, size)
        batch = slice(self.start, stop)
        self.start = stop
        return batch

    def halve(self, rows: Rows) -> int:
        """Take the rows back; `take` cuts them by the smaller size."""
        count = row_count(rows)
        self.size.on_out_of_memory(count)
        self.put_back(rows, [rows])
        return min(count, self.size.size)

    def observe(self, rows: Rows, seconds: float) -> None:
        """Let the policy learn, unless it has settled."""
        if not self.size.settled:
            self.size.observe(row_count(rows), seconds)


class SortedWork(Work):
    """Rows of similar length together, longest first, under a budget of tokens.

    The policy is shared by threads and learns while it is used: the rows that are left
    are planned anew when it has changed. With `equal_lengths` only rows of equal length
    make a batch, so that nothing is padded.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        tokens: TokenBudget,
        rows: int,
        *,
        equal_lengths: bool = False,
    ) -> None:
        super().__init__()
        #: Tokens of each row; most padded tokens, and most rows, of a batch.
        self.lengths, self.tokens, self.rows = lengths, tokens, rows
        self.equal_lengths = equal_lengths
        #: Rows not taken yet, by falling length.
        self.left: np.ndarray = np.argsort(-lengths, kind="stable")
        #: The first of `left` as batches, and what they were planned for.
        self.batches: deque[np.ndarray] = deque()
        self.planned_for: tuple[float, ...] = ()

    def take(self) -> Rows | None:
        """Rows of the next batch."""
        if self.returned:
            return self.returned.popleft()  # type: ignore[no-any-return]
        if not len(self.left):
            return None
        budget, cost = self.tokens.next_size(), self.tokens.forward_cost
        if not self.batches or self.planned_for != (budget, cost, self.rows):
            self.batches = deque(self._planned(self._ahead(budget), budget))
            self.planned_for = (budget, cost, self.rows)
        batch = self.batches.popleft()
        self.left = self.left[len(batch) :]
        return batch

    def halve(self, rows: Rows) -> int:
        """Plan what came back under half of the padded tokens that did not fit."""
        assert not isinstance(rows, slice)
        budget = self.tokens.on_out_of_memory(self._padded(rows))
        pieces = self._planned(rows, budget)
        if len(pieces[0]) >= len(rows):  # rows without tokens cost none
            self.rows = (len(rows) + 1) // 2
            pieces = self._planned(rows, budget)
        back = [piece for r in self.returned for piece in self._planned(r, budget)]
        self.returned = deque(back)
        self.put_back(rows, pieces)
        return len(pieces[0])

    def observe(self, rows: Rows, seconds: float) -> None:
        """Let the policy learn."""
        assert not isinstance(rows, slice)
        self.tokens.observe(self._padded(rows), seconds)

    def _ahead(self, budget: int) -> np.ndarray:
        """Rows to plan now: only some batches of them until the budget has settled."""
        if self.tokens.settled:
            return self.left
        far = np.searchsorted(np.cumsum(self.lengths[self.left]), TRIAL * budget)
        return self.left[: int(far) + 1]

    def _padded(self, rows: np.ndarray) -> int:
        return len(rows) * int(self.lengths[rows].max())

    def _planned(self, rows: np.ndarray, budget: int) -> list[np.ndarray]:
        plan = plan_tokens(
            self.lengths[rows],
            budget=budget,
            rows=self.rows,
            # Where another forward is free, no plan pads.
            forward_cost=0.0 if self.equal_lengths else self.tokens.forward_cost,
        )
        return [rows[batch] for batch in plan]


#: Budgets' worth of rows that are planned until the budget has settled.
TRIAL = 8


def row_count(rows: Rows) -> int:
    """Rows of a batch."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def plan_work(rows: int, encoder: Encoder, job: Job, runner: Runner) -> Work:
    """Return the batches of a partition under the job's limits.

    Sizes belong to the replica, so what once did not fit is known to all partitions.
    """
    # The user's functions make other tensors of the same rows.
    signature = (encoder.signature, job.method, job.code.key)
    size = runner.batch_size(signature, encoder.bytes_per_row, job.batch_size)
    if not encoder.bytes_per_row:
        encoder.on_row_bytes = size.observe_row_bytes
    if encoder.lengths is None or not job.row_wise or job.batch_tokens is None:
        wanted = runner.microbatch if job.batch_size is None else None
        return ConsecutiveWork(rows, size, wanted=wanted)
    bound = None if job.batch_tokens == "auto" else job.batch_tokens
    tokens = runner.token_budget(signature, bound)
    most = size.size if job.batch_size else rows
    equal = encoder.equal_lengths
    return SortedWork(encoder.lengths, tokens, most, equal_lengths=equal)
