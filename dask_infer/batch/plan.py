"""Which rows of a partition make a batch: arithmetic on row numbers and lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

#: A batch may be cut where rows are this much shorter than its longest. On lengths
#: from 40 to 3,000 texts, skewed, uniform and bimodal, 1.1 stayed within 2 % of the
#: cheapest plan (dynamic programming over the sorted lengths), 1.25 within 4 %; filling
#: the budget greedily cost up to 3 times as much.
RATIO = 1.1

#: What another forward costs, in padded tokens: a cut has to save more than that.
FORWARD_COST = 256


def plan_rows(
    n: int, batch_size: int | Callable[[], int], start: int = 0
) -> Iterator[slice]:
    """Consecutive batches of at most `batch_size` rows.

    Parameters
    ----------
    n
        Rows of the partition.
    batch_size
        Most rows of a batch. A callable is asked once before each batch, so that a
        policy may change its mind on the way and still no row is lost or doubled.
    start
        First row.
    """
    while start < n:
        size = batch_size() if callable(batch_size) else batch_size
        stop = min(start + max(1, size), n)
        yield slice(start, stop)
        start = stop


def plan_tokens(
    lengths: npt.ArrayLike,
    *,
    budget: int | None,
    rows: int | None = None,
    ratio: float | None = RATIO,
    forward_cost_tokens: int = FORWARD_COST,
) -> list[Rows]:
    """Batches of rows of similar length, the longest first.

    The longest come first so that memory peaks at once, not an hour into the job.
    Every row is in exactly one batch.

    Parameters
    ----------
    lengths
        Tokens of each row.
    budget
        Most padded tokens of a batch: its rows times its longest row. A single row
        beyond it goes alone. None for no limit.
    rows
        Most rows of a batch; None for no limit.
    ratio
        Longest over shortest row beyond which a batch may be cut; None never cuts.
    forward_cost_tokens
        Padded tokens that a cut must save.

    Returns
    -------
    Row numbers of each batch, by falling length; equal lengths keep their order.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    falling = np.maximum(sizes[order], 1)
    batches = []
    start = 0
    while start < len(order):
        stop = start + _most_rows(falling[start], budget, rows, len(order) - start)
        if ratio is not None:
            stop = start + _cut(falling[start:stop], ratio, forward_cost_tokens)
        batches.append(order[start:stop])
        start = stop
    return batches


def _most_rows(longest: int, budget: int | None, rows: int | None, left: int) -> int:
    most = left if rows is None else min(left, rows)
    if budget is not None:
        most = min(most, int(budget // longest))
    return max(1, most)


def _cut(falling: Rows, ratio: float, cost: int) -> int:
    """Where to end a batch of falling lengths: as early as cuts pay for themselves.

    Rows from a cut on are padded to the first of them instead of to the longest row.
    What is left before the best cut is looked at again.
    """
    candidates = np.flatnonzero(falling * ratio < falling[0])
    saved_each = falling[0] - falling[candidates]
    end = len(falling)
    while len(candidates):
        saved = (end - candidates) * saved_each[: len(candidates)]
        best = int(np.argmax(saved))
        if saved[best] <= cost:
            break
        end = int(candidates[best])
        candidates = candidates[:best]
    return end
