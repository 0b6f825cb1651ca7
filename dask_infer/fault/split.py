"""A failing batch cut into pieces, to find the rows that fail.

One failing row of n is alone after ``log(n, parts)`` cuts. Each cut runs all its
pieces, so halves cost the fewest forwards, ``2 * log2(n) + 1`` with the first one; many
pieces run into the failing row less often, which matters where that costs a timeout.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Rows: TypeAlias = slice | npt.NDArray[Any]

#: Pieces after an error.
HALVES = 2

#: Pieces after a timeout: one hanging row of 4,096 costs 4 timeouts, not 13.
MANY = 16


def split(rows: Rows, parts: int) -> Sequence[Rows]:
    """Return `rows` in order, in at most so many pieces that differ by one row.

    A slice is cut into slices, positions into positions. No piece is empty.
    """
    if not isinstance(rows, slice):
        return np.array_split(rows, min(parts, len(rows)))
    count = rows.stop - rows.start
    parts = min(parts, count)
    cuts = [rows.start + count * part // parts for part in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(cuts)]
