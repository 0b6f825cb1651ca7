"""Which rows of a partition make a batch: arithmetic on row numbers and lengths."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

#: What another forward costs, in padded tokens, until it was measured.
FORWARD_COST = 64


def plan_tokens(
    lengths: npt.ArrayLike,
    *,
    budget: int | None,
    rows: int | None = None,
    forward_cost: float = FORWARD_COST,
) -> list[Rows]:
    """Cheapest batches under a budget of padded tokens, the longest rows first.

    A forward costs a fixed part and one part for each padded token, so a batch is cut
    where padding would cost more than another forward. Of all ways to divide the rows
    none is cheaper (see `_starts`). The longest come first so that memory peaks at
    once, not an hour into the job.

    Parameters
    ----------
    lengths
        Tokens of each row.
    budget
        Most padded tokens of a batch: its rows times its longest row. A single row
        beyond it goes alone. None for no limit.
    rows
        Most rows of a batch; None for no limit.
    forward_cost
        What another forward costs, in padded tokens.

    Returns
    -------
    Row numbers of each batch, by falling length; equal lengths keep their order.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if not len(sizes):
        return []
    order = np.argsort(-sizes, kind="stable")
    falling = np.maximum(sizes[order], 1)
    cuts = np.flatnonzero(np.diff(falling)) + 1
    bounds = np.concatenate([[0], cuts, [len(falling)]])
    longest = falling[bounds[:-1]]
    caps = _most_rows(longest, budget, rows, len(falling))
    return np.split(order, _starts(longest, bounds, caps, forward_cost)[1:])


def _most_rows(longest: Rows, budget: int | None, rows: int | None, n: int) -> Rows:
    """Most rows of a batch that begins in each run of equal lengths."""
    most: Rows = np.full(len(longest), n if rows is None else min(n, rows))
    if budget is not None:
        most = np.minimum(most, budget // longest)
    return np.maximum(most, 1).astype(np.int64)


def _starts(lengths: Rows, bounds: Rows, caps: Rows, forward_cost: float) -> list[int]:
    """Where the batches of the cheapest plan start, by dynamic programming.

    `bounds` says where each run of equal `lengths` starts among the sorted rows, and
    where the last one ends; `caps` how many rows a batch that starts there may hold.

    1. Batches of consecutive sorted rows are enough: order any plan's batches by their
       longest row and deal the sorted rows out to them anew, as many as each had. No
       batch's longest row grows, so neither do costs, and no cap is broken.
    2. Of those it is enough to start batches where a run starts, or so far before the
       batch's end that it is full: from any other start rows of the same length can
       be moved out of the batch before it into this one, which costs them no more
       there, until one of the two holds.

    So each end has few starts: the runs within reach of it, and one full batch. The
    ends are visited from the last row to the first, only those that can be reached.
    The work grows with ends times distinct lengths within a batch: 100,000 texts of
    300 lengths take 0.1 s on one core, their tokens some seconds.
    """
    runs, n = bounds[:-1], int(bounds[-1])
    cost = np.full(n + 1, np.inf)
    cost[n] = 0.0
    ends = np.zeros(n + 1, np.int64)
    reach = runs + caps
    for end in range(n, 0, -1):
        so_far = cost[end]
        if so_far == np.inf:
            continue
        # Runs whose first row is at most a full batch away, and before the end.
        first, last = np.searchsorted(reach, end), np.searchsorted(runs, end)
        starts, longest = runs[first:last], lengths[first:last]
        # `reach` rises, so no other run's full batch can start within that run.
        full = int(np.searchsorted(reach, end, side="right")) - 1
        start = end - int(caps[full]) if full >= 0 else -1
        if full >= 0 and start < bounds[full + 1]:
            starts = np.append(starts, start)
            longest = np.append(longest, lengths[full])
        price = so_far + forward_cost + longest * (end - starts)
        better = price < cost[starts]
        cost[starts[better]] = price[better]
        ends[starts[better]] = end
    plan = [0]
    while (end := int(ends[plan[-1]])) < n:
        plan.append(end)
    return _filled(plan, bounds, caps)


def _filled(plan: list[int], bounds: Rows, caps: Rows) -> list[int]:
    """Fill batches with rows of their own longest length, which costs nothing.

    Of plans that cost the same this is the one whose first batches are full.
    """
    filled, n = [0], int(bounds[-1])
    for end in [*plan[1:], n]:
        run = int(np.searchsorted(bounds, filled[-1], side="right")) - 1
        end = max(end, min(int(bounds[run + 1]), filled[-1] + int(caps[run])))
        if filled[-1] < end < n:
            filled.append(end)
    return filled
