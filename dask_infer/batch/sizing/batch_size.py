"""The fastest number of rows of a forward, projected from the bytes of a row."""

from __future__ import annotations

from dask_infer.batch.sizing.hill_climber import HillClimber

#: Bytes of input that the first batch aims at: 2,048 rows of 32 float32 columns, where
#: an MLP 32-128-128-1 on one CPU core was within 2 % of its best rate.
FIRST_BATCH = 256 * 1024

#: Bounds of the first batch, in rows.
FIRST_ROWS = (8, 4096)

#: Rows of the first batch where the size of a row is not known: `preprocess` may make
#: an image of each.
UNKNOWN_ROWS = 32

#: Bytes of activations alive at once for each byte of input: 10 for an MLP whose layers
#: are four times as wide as its input, about 20 for a convolutional net.
ACTIVATIONS = 32

#: Part of the free memory that one forward may take: other threads forward as well.
SHARE = 0.25

#: Beyond this many rows nothing was ever gained.
MOST_ROWS = 131_072


class BatchSize(HillClimber):
    """``batch_size="auto"``: climbs from a projection (`start`) to the fastest size."""

    def __init__(self) -> None:
        super().__init__(FIRST_ROWS[0], MOST_ROWS)
        self._free: int | None = None
        self._knows_row = False

    def start(self, bytes_per_row: float, free_bytes: int | None = None) -> int:
        """Project the first size and the largest one; returns the first.

        Parameters
        ----------
        bytes_per_row
            Bytes of one row's tensors; 0 where unknown.
        free_bytes
            Bytes free on the device; None where unknown.
        """
        self._free = free_bytes
        self._knows_row = bytes_per_row > 0
        first = UNKNOWN_ROWS
        if self._knows_row:
            first = int(FIRST_BATCH / max(1.0, bytes_per_row))
            first = min(max(first, FIRST_ROWS[0]), FIRST_ROWS[1])
        with self._lock:
            if not self.settled:
                self.limit = self._most(bytes_per_row)
                self.size = min(1 << (first.bit_length() - 1), self.limit)
                self.settled = 2 * self.size > self.limit
                self._direction = 0
                self._restart()
            return self.size

    def observe_row_bytes(self, bytes_per_row: float) -> None:
        """Take note of what a row takes, now that a batch was made of some."""
        if self._knows_row or bytes_per_row <= 0:
            return
        self._knows_row = True
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
