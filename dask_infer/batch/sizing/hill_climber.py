"""The size of a forward, in rows or in padded tokens: a fixed bound, or the fastest.

One policy belongs to one resident replica and is shared by the threads that lease it.
Read `next_size` once for each batch: it may change between two reads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean

#: One size of a pair wins where it brings this much more a second.
GAIN = 1.04

#: The last forwards of each size of a pair that count, and of them the faster half:
#: what disturbs a forward (a cold cache, a neighbour on the core) makes it slower.
OBSERVATIONS = 4

#: Runs of each until the larger has not won: a growth in vain is cheap, to stay is for
#: good, and the machine may have slowed down between the first two.
PATIENCE = 3

#: Forwards of one size in a row. The first does not count: it finds caches as the other
#: size left them, and may have waited for a neighbour's forward of that size.
RUN = 3

#: The larger wins after one run where its slowest forward beats the other's fastest by
#: this much.
CLEAR_GAIN = 1.1

#: First observations of all that do not count: a first forward also compiles, allocates
#: and fills caches.
WARM_UP = 3

#: A forward counts for a size when it fills this much of it.
FULL = 0.75


class HillClimber:
    """A size that climbs to the fastest, and stays there for good.

    Tests a size against its double in alternating short runs, so that both see the
    same moment of the machine. With one long run of each, a neighbour that filled the
    caches just then made a doubling look useless, and the search ended at 32 rows where
    128 were fastest (benchmarks/batch_size).
    All threads are on one size at a time: where they wait for each other, a forward's
    time holds that of a neighbour, too.

    While the larger of the pair wins, the next pair is larger; a first pair without a
    winner, or won by the smaller, is followed by smaller ones while these win. So the
    size never goes back and forth.
    """

    #: Most rows, or padded tokens, of a forward; while two are compared, the smaller.
    size: int
    #: Whether `size` will only change for lack of memory.
    settled: bool
    #: What `size` counts.
    unit = "rows"
    #: Called, without the lock, when there is something to remember.
    on_learned: Callable[[HillClimber], None] | None = None
    #: Whether the larger of the pair has its turn, and its forwards so far.
    _larger: bool
    _run: int
    #: Runs of both, and the rates seen of the smaller and of the larger.
    _runs: int
    _rates: tuple[deque[float], deque[float]]

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        #: The most that memory allows.
        self.limit = limit
        #: Rows, or padded tokens, that went by until the size had settled.
        self.spent = 0
        self.settled = 2 * size > limit
        self._lock = threading.Lock()
        #: 1 while it grows, -1 while it shrinks, 0 during the first pair.
        self._direction = 0
        self._seen = 0
        self._restart()

    def __repr__(self) -> str:
        state = "settled" if self.settled else "climbing"
        return f"<{type(self).__name__} {self.size} {self.unit}, {state}>"

    def next_size(self) -> int:
        """Return the size of the next forward: the two of the pair take turns."""
        with self._lock:
            return self._current()

    def observe(self, amount: int, seconds: float) -> None:
        """Count one forward; one that fills neither size of the pair is ignored."""
        with self._lock:
            if self.settled:
                return
            self.spent += amount
            self._seen += 1
            if self._seen <= WARM_UP or seconds <= 0:
                return
            size = self._current()
            if not FULL * size <= amount <= size:
                return
            self._run += 1
            if self._run > 1:
                self._rates[self._larger].append(amount / seconds)
            if self._run == RUN:
                self._run, self._larger = 0, not self._larger
                if not self._larger:
                    self._runs += 1
                    self._decide(*self._rates)
            learned = self.settled
        if learned:
            self._report()

    def on_out_of_memory(self, amount: int) -> int:
        """Settle at what fits, at most half of `amount`; returns the new size."""
        with self._lock:
            half = max(1, amount // 2)
            self.limit, self.size = min(self.limit, half), min(self.size, half)
            self.settled = True
            size = self.size
        self._report()
        return size

    def observe_row_bytes(self, bytes_per_row: float) -> None:
        """Take note of what a row takes, if the size depends on it."""

    def resume(self, state: Mapping[str, float]) -> None:
        """Start settled at an earlier replica's size, or at what memory allows."""
        with self._lock:
            if not self.settled:
                self.size = max(1, min(int(state["size"]), self.limit))
                self.settled = True

    def state(self) -> dict[str, float]:
        """Return what was learned, for `resume`."""
        return {"size": self.size}

    def _report(self) -> None:
        if self.on_learned is not None:
            self.on_learned(self)

    def _current(self) -> int:
        return 2 * self.size if self._larger and not self.settled else self.size

    def _restart(self) -> None:
        """Start to compare another pair, without observations."""
        self._larger, self._run, self._runs = False, 0, 0
        small: deque[float] = deque(maxlen=OBSERVATIONS)
        self._rates = small, small.copy()

    def _decide(self, small: deque[float], large: deque[float]) -> None:
        """Go on to the next pair, or settle, once the two rates differ clearly."""
        gain = _fastest(large) / _fastest(small)
        won = len(large) == OBSERVATIONS and gain > GAIN
        won |= min(large) > max(small) * CLEAR_GAIN
        if not won and self._runs < PATIENCE:
            return
        self._restart()
        if won and self._direction >= 0:
            self._direction, self.size = 1, 2 * self.size
            self.settled = 2 * self.size > self.limit
        elif self._direction == 0 or (self._direction < 0 and gain < 1 / GAIN):
            self._direction = -1
            self.settled = self.size == 1
            self.size = max(1, self.size // 2)
        else:
            self.settled = True
            if self._direction < 0:
                self.size *= 2


class FixedSize(HillClimber):
    """The user's ``batch_size=n``: an upper bound that only lack of memory lowers."""

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f'batch_size={size!r}: pass a positive whole number of rows, or "auto"'
            )
        super().__init__(size, size)


def _fastest(rates: deque[float]) -> float:
    """Return the mean of the faster half: the very fastest is also the luckiest."""
    return fmean(sorted(rates)[len(rates) // 2 :])
