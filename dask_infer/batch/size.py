"""How many rows go into one forward: a fixed bound, or a policy that learns.

One policy belongs to one resident replica and is shared by the threads that lease it.
Read `size` once per split: it may change between two reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

#: Bytes of input that the first batch aims at: 2,048 rows of 32 float32 columns, where
#: an MLP 32-128-128-1 on one CPU core was within 2 % of its best rate.
FIRST_BATCH = 256 * 1024

#: Bounds of the first batch, in rows.
FIRST_ROWS = (8, 4096)

#: Rows of the first batch where nobody knows how large a row is: `preprocess` may make
#: an image of each.
UNKNOWN_ROWS = 32

#: Bytes of activations alive at once for each byte of input: 10 for an MLP whose layers
#: are four times as wide as its input, about 20 for a convolutional net.
ACTIVATIONS = 32

#: Part of the free memory that one forward may take: other threads forward as well.
SHARE = 0.25

#: Beyond this many rows nothing was ever gained.
MOST_ROWS = 131_072

#: A doubling must bring this much more rows a second.
GAIN = 1.05

#: Observations at each size; the fastest counts. What disturbs a forward (a cold cache,
#: a neighbour on the core) only ever makes it slower: by medians of 3 the MLP of
#: benchmarks/overhead settled at 8,192 rows, 10 % slower than at 2,048.
OBSERVATIONS = 5

#: First observations of all that do not count.
WARM_UP = 3


class FixedSize:
    """The user's ``batch_size=n``: an upper bound that only lack of memory lowers."""

    #: Most rows of the next batch.
    size: int
    #: Whether `size` will only change for lack of memory.
    settled: bool
    #: Called, without the lock, when there is something to remember.
    on_learned: Callable[[FixedSize], None] | None = None

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f'batch_size={size!r}: pass a positive whole number of rows, or "auto"'
            )
        self.size = size
        self.settled = True
        self._lock = threading.Lock()

    def observe(self, rows: int, seconds: float) -> None:
        """Learn nothing: the size is the user's."""

    def on_out_of_memory(self, rows: int) -> int:
        """Halve after `rows` rows did not fit, for good; returns the new size."""
        with self._lock:
            self.size = min(self.size, max(1, rows // 2))
            self.settled = True
            size = self.size
        self._tell()
        return size

    def weigh(self, bytes_per_row: float) -> None:
        """Take note of what a row takes: nothing to do, the size is the user's."""

    def resume(self, state: Mapping[str, float]) -> None:
        """Go on with what an earlier replica has learned."""

    def state(self) -> dict[str, float]:
        """Return what was learned, for `resume`."""
        return {"size": self.size}

    def _tell(self) -> None:
        if self.on_learned is not None:
            self.on_learned(self)

    def __repr__(self) -> str:
        state = "settled" if self.settled else "climbing"
        return f"<{type(self).__name__} {self.size} rows, {state}>"


class BatchSize(FixedSize):
    """``batch_size="auto"``: doubles while that brings more rows a second.

    The size starts from a projection (`start`), doubles while the rate grows by more
    than 5 %, and settles for good at the best size seen: it never goes back and forth.
    The first observations of all are dropped, since a first forward also compiles,
    allocates and fills caches.
    """

    def __init__(self) -> None:
        super().__init__(FIRST_ROWS[0])
        self.settled = False
        self.limit = MOST_ROWS
        #: Rows that went by until the size had settled.
        self.rows_to_settle = 0
        self._free: int | None = None
        self._weighed = False
        self._seen = 0
        self._rates: list[float] = []
        #: Best rate so far and the size that gave it.
        self._best = (0.0, 0)

    def start(
        self, bytes_per_row: float, nbytes_model: int = 0, free_bytes: int | None = None
    ) -> int:
        """Project the first size and the largest one; returns the first.

        Parameters
        ----------
        bytes_per_row
            Bytes of one row's tensors; 0 where nobody can tell.
        nbytes_model
            Weights still to be loaded into `free_bytes`; 0 once they are resident.
        free_bytes
            Bytes free on the device; None where it cannot tell.
        """
        self._free = None if free_bytes is None else max(0, free_bytes - nbytes_model)
        self._weighed = bytes_per_row > 0
        first = UNKNOWN_ROWS
        if self._weighed:
            first = int(FIRST_BATCH / max(1.0, bytes_per_row))
            first = min(max(first, FIRST_ROWS[0]), FIRST_ROWS[1])
        with self._lock:
            if not self.settled:
                self.limit = self._most(bytes_per_row)
                self.size = min(1 << (first.bit_length() - 1), self.limit)
            return self.size

    def weigh(self, bytes_per_row: float) -> None:
        """Take note of what a row takes, now that a batch was made of some."""
        if self._weighed or bytes_per_row <= 0:
            return
        self._weighed = True
        if not self.settled:
            self.start(bytes_per_row, free_bytes=self._free)
            return
        with self._lock:  # a remembered size is right, a smaller memory is another
            self.size = min(self.size, self._most(bytes_per_row))

    def _most(self, bytes_per_row: float) -> int:
        if self._free is None:
            return MOST_ROWS
        row = max(1.0, bytes_per_row) * ACTIVATIONS
        return max(1, min(MOST_ROWS, int(self._free * SHARE / row)))

    def observe(self, rows: int, seconds: float) -> None:
        """Count one forward; batches of another size than the current tell nothing."""
        with self._lock:
            if self.settled:
                return
            self.rows_to_settle += rows
            if rows != self.size or seconds <= 0:
                return
            self._seen += 1
            if self._seen <= WARM_UP:
                return
            self._rates.append(rows / seconds)
            if len(self._rates) >= OBSERVATIONS:
                self._climb(max(self._rates))
            learned = self.settled
        if learned:
            self._tell()

    def resume(self, state: Mapping[str, float]) -> None:
        """Start settled at an earlier replica's size, or at what memory allows."""
        with self._lock:
            self.size = max(1, min(int(state["size"]), self.limit))
            self.settled = True

    def _climb(self, rate: float) -> None:
        self._rates.clear()
        best_rate, best_size = self._best
        if rate <= best_rate * GAIN:
            self.size, self.settled = best_size, True
            return
        self._best = (rate, self.size)
        if self.size * 2 > self.limit:
            self.settled = True
        else:
            self.size *= 2

    def on_out_of_memory(self, rows: int) -> int:
        """Settle at the best size known to fit, at most half of `rows`, for good."""
        with self._lock:
            cap = max(1, rows // 2)
            known = self._best[1] or self.size
            self.limit = min(self.limit, cap)
            self.size = min(self.size, known, cap)
            self.settled = True
            size = self.size
        self._tell()
        return size
