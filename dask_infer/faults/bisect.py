"""The search for the rows that fail: which piece of a failing batch to run next.

One failing row of n is alone after ``log(n, parts)`` cuts. Halves cost the fewest
forwards, at most ``2 * log2(n) + 1`` with the first one; many pieces run into the
failing row less often, which matters where that costs a timeout. Two rules save
forwards:

1. Where all pieces of a batch but the last have passed, the last is what failed: it is
   cut without being run. A row alone is always run before it counts as failed, so a
   failure that does not come again costs forwards and no row.
2. Where batches fail often, the next ones are smaller: half of one that failed, twice
   one that passed. Half of the batches fail then, which is where a search by halves
   learns the most; what a large batch computes before it fails is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy.typing as npt

#: The rows of a batch: consecutive ones, or positions in the partition.
Rows: TypeAlias = slice | npt.NDArray[Any]

#: First row and number of rows: no two batches that wait share it.
Key: TypeAlias = tuple[int, int]

#: Pieces after an error.
HALVES = 2

#: Pieces after a timeout: one hanging row of 4,096 costs 4 timeouts, not 13.
MANY = 16


def spans(count: int, parts: int, cuts: Collection[int] = ()) -> list[slice]:
    """Return so many rows in so many pieces that differ by one; none is empty.

    They are cut at `cuts`, places between rows, besides.
    """
    parts = min(parts, count)
    places = {*cuts, *(count * part // parts for part in range(parts + 1))}
    return [slice(start, stop) for start, stop in pairwise(sorted(places))]


def split(rows: Rows, parts: int, cuts: Collection[int] = ()) -> Sequence[Rows]:
    """Return `rows` in order, in the pieces that `spans` says.

    A slice is cut into slices, positions into positions.
    """
    found = spans(_key(rows)[1], parts, cuts)
    if not isinstance(rows, slice):
        return [rows[span] for span in found]
    return [slice(rows.start + span.start, rows.start + span.stop) for span in found]


@dataclass
class Pieces:
    """The pieces of one failed batch."""

    #: Pieces that have to pass before the last is known to fail.
    waiting: int
    last: Key
    #: In how many pieces the last is to be cut in its turn.
    parts: int


class RowSearch:
    """What is known of the batches of one partition."""

    def __init__(self) -> None:
        #: Whether a batch has failed: before that there is nothing to search for.
        self.active = False
        #: Most rows of a batch that is no piece of a failed one; None for no limit.
        self.most: int | None = None
        self._largest = 0
        #: Where pieces that have not been run come from.
        self._cuts: dict[Key, Pieces] = {}
        #: Pieces that need not be run to be cut, and into how many.
        self._known_to_fail: dict[Key, int] = {}

    def __repr__(self) -> str:
        return f"<RowSearch {len(self._cuts)} pieces, at most {self.most} rows>"

    def instead(self, rows: Rows) -> Sequence[Rows] | None:
        """Return what to put back in place of a batch, or None to run it."""
        key = _key(rows)
        count = key[1]
        if key in self._known_to_fail and count > 1:
            return self.failed(rows, self._known_to_fail.pop(key))
        if key in self._cuts or self.most is None or count <= self.most:
            return None
        if isinstance(rows, slice):
            middle = rows.start + self.most
            return [slice(rows.start, middle), slice(middle, rows.stop)]
        return [rows[: self.most], rows[self.most :]]

    def passed(self, rows: Rows) -> None:
        """Learn that a batch did not fail."""
        key = _key(rows)
        cut = self._cuts.pop(key, None)
        if cut is None:
            if self.most is not None and key[1] >= self.most:
                wider = 2 * self.most
                self.most = wider if wider < self._largest else None
            return
        cut.waiting -= 1
        if not cut.waiting and key != cut.last:
            self._known_to_fail[cut.last] = cut.parts

    def failed(
        self, rows: Rows, parts: int, cuts: Collection[int] = ()
    ) -> Sequence[Rows]:
        """Return the pieces in which a batch that failed is to be run.

        With `cuts` it is cut there besides: whoever ran it has searched already.
        """
        self.active = True
        key = _key(rows)
        cut = self._cuts.pop(key, None)
        if cut is not None:
            cut.waiting = 0
        elif not cuts:
            self._largest = max(self._largest, key[1])
            self.most = max(1, key[1] // 2)
        pieces = split(rows, parts, cuts)
        keys = [_key(piece) for piece in pieces]
        self._cuts |= dict.fromkeys(keys, Pieces(len(keys) - 1, keys[-1], parts))
        return pieces

    def alone(self, rows: Rows) -> None:
        """Learn that a batch that cannot be cut has failed."""
        cut = self._cuts.pop(_key(rows), None)
        if cut is not None:
            cut.waiting = 0


def _key(rows: Rows) -> Key:
    if isinstance(rows, slice):
        return rows.start, rows.stop - rows.start
    return int(rows[0]), len(rows)
