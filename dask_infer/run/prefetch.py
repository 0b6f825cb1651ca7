"""Batches encoded ahead of the forward, in a second thread of the partition.

`preprocess` may decode images or read files for as long as a forward takes. One thread
a partition runs it while the partition's own waits for the device, so neither stops the
other. What `preprocess` raises is raised where that batch is asked for.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from dask_infer.batch.inputs.batch import Batch
from dask_infer.faults.bisect import Rows
from dask_infer.metrics.recorder import meter
from dask_infer.run.work import Work

Encode: TypeAlias = Callable[[Rows], Batch]


class Prefetch(Work):
    """A `Work` whose next batches are encoded before they are taken.

    All but `encode` runs in the partition's thread, the inner work too. At most `ahead`
    batches are encoded, or being encoded, and not yet taken.
    """

    def __init__(self, work: Work, encode: Encode, ahead: int) -> None:
        self.inner = work
        self._encoder = encode
        self._encoding = threading.Lock()
        self._ahead = ahead
        #: Encoded batches that are not taken yet, in their order.
        self._queue: deque[tuple[Rows, Future[Batch]]] = deque()
        #: The batch that was taken last.
        self._taken: tuple[Rows, Future[Batch]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dask-infer-prefetch")

    def take(self) -> Rows | None:
        """Rows of the next batch, whose encoding has begun."""
        # Whoever starts a batch may wait until the thread lets the interpreter go.
        with meter("encode"):
            self._fill(1)
            if not self._queue:
                return None
            self._taken = self._queue.popleft()
            self._fill(self._ahead)
        return self._taken[0]

    def batch(self, rows: Rows) -> Batch:
        """Return the batch of `rows`, or raise what its encoding raised."""
        taken, self._taken = self._taken, None
        if taken is None or taken[0] is not rows:
            return self._encode(rows)
        return taken[1].result()

    def put_back(self, rows: Rows, pieces: Sequence[Rows]) -> None:
        """Have the pieces of failed rows run after what is encoded already."""
        self.inner.put_back(rows, pieces)

    def halve(self, rows: Rows) -> int:
        """Put rows back in smaller batches, and what is encoded ahead as well."""
        self._drop()
        return self.inner.halve(rows)

    def observe(self, rows: Rows, seconds: float) -> None:
        """Learn from a finished batch."""
        self.inner.observe(rows, seconds)

    def close(self) -> None:
        """End the thread, once the batch that it is at is done."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _encode(self, rows: Rows) -> Batch:
        # The user's function may not expect two threads of one partition.
        with self._encoding, meter("encode"):
            return self._encoder(rows)

    def _fill(self, count: int) -> None:
        while len(self._queue) < count:
            rows = self.inner.take()
            if rows is None:
                return
            # The current worker, and all else that is ambient, travels in the context.
            context = contextvars.copy_context()
            future = self._thread.submit(context.run, self._encode, rows)
            self._queue.append((rows, future))

    def _drop(self) -> None:
        """Give rows back that were encoded for a size that no longer fits."""
        while self._queue:
            rows, future = self._queue.pop()
            future.cancel()
            self.inner.put_back(rows, [rows])
