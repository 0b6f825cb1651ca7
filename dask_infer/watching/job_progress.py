"""How far one job is, in rows."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from dask.utils import format_time

from dask_infer._dask import count_partitions, count_rows
from dask_infer.metrics.sums import Label, Sums
from dask_infer.watching.display import ProgressLine

#: Seconds over which rows a second are averaged.
AVERAGED = 10.0
#: Where it ended and rows are missing: a worker is of a version that counts otherwise,
#: or was closed before its last heartbeat.
UNREPORTED = "the rest was not reported by its workers"


class JobProgress:
    """Rows done and expected; done never falls and never passes the total.

    Rows of a partition that runs twice, as it does where a worker dies, are counted
    twice: the total is the limit.

    Parameters
    ----------
    label
        The job.
    """

    def __init__(self, label: Label) -> None:
        self.label = label
        self.name = label.model.rpartition("-")[0]
        #: What it adds to the frame; distinguishes jobs whose models have one name.
        self.adds = f"job {label.job}"
        #: Expressions that it predicts, whose rows are not counted yet.
        self.frames: list[Any] = []
        self.partitions = 0
        #: What metadata says; None where it does not.
        self.known: int | None = 0
        #: Partitions that are computed, where rows are not seen; else None.
        self.finished: int | None = None
        #: Whether it began before it was watched, so that earlier runs count as well.
        self.began_before = False
        #: Whether such runs are among what was counted, so that `done` is estimated.
        self.ran_before = False
        self.done = self.failed = 0
        #: Whether its first partitions have begun and predicted no row yet.
        self.loading = False
        self.total: int | None = None
        self.estimated = False
        self.started = time.monotonic()
        self._before = deque([(self.started, 0)])

    def measure(self) -> None:
        """Count the rows and partitions of its expressions; it may read files."""
        while self.frames:
            frame = self.frames.pop()
            self.partitions += count_partitions(frame)
            rows = count_rows(frame)
            if rows is None or self.known is None:
                self.known = None
            else:
                self.known += rows

    def update(self, sums: Sums) -> None:
        """Take what was counted of it."""
        rows = sums.count("rows") + sums.count("failed_rows")
        rows += int(sums.levels.get("rows_underway", 0))
        started = sums.count("started")
        total = self.known
        if total is None and started:
            total = round(sums.counts["rows_in"] / started * self.partitions)
        if self.finished is not None and self.began_before and started:
            earlier = max(0, sums.count("partitions") - self.finished)
            self.ran_before = earlier > 0
            rows -= round(sums.counts["rows_in"] / started * earlier)
            if self.finished >= self.partitions and self.is_complete(sums):
                rows = total or 0
        elif self.finished and not started and total and self.partitions:
            # Other processes count on their own.
            rows = total * min(self.finished, self.partitions) // self.partitions
        self.failed = sums.count("failed_rows")
        self.loading = not rows and sums.seconds.get("load", 0.0) > 0
        self.estimated = self.known is None
        if total is not None:
            total = max(total, self.done)
            rows = min(rows, total)
        self.total = total
        self.done = max(self.done, rows)
        now = time.monotonic()
        if len(self._before) == 1 and self.began_before:
            self._before[0] = (now, self.done)
        self._before.append((now, self.done))
        while now - self._before[1][0] > AVERAGED:
            self._before.popleft()

    def is_complete(self, sums: Sums) -> bool:
        """Whether everything that is expected was counted."""
        if self.known is not None:
            return self.done >= self.known
        running = sums.levels.get("partitions", 0)
        return not running and sums.count("partitions") >= self.partitions

    @property
    def fraction(self) -> float | None:
        """Part that is done; None where the total is unknown."""
        return None if not self.total else min(1.0, self.done / self.total)

    @property
    def rate(self) -> float:
        """Rows a second, lately."""
        (since, before), (now, done) = self._before[0], self._before[-1]
        return (done - before) / (now - since) if now > since else 0.0

    def line(self, state: str, *, alone: bool = True) -> ProgressLine:
        """Return its line.

        Parameters
        ----------
        state
            "running", "done", or "stopped" by an error or the user.
        alone
            Whether no other line has its name.
        """
        count = f"{'~' * self.ran_before}{self.done:,}"
        # What a job did is all that there was, where that was not known before.
        open_end = state != "done" or not self.estimated
        if open_end and self.total is not None and self.total != self.done:
            count += f" of {'~' * self.estimated}{self.total:,}"
        count += " rows"
        if self.total is None and self.finished:
            count = f"{self.finished:,} of {self.partitions:,} partitions"
        name = self.name if alone else f"{self.name} ({self.adds})"
        parts = [f"{name}: {count}"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if state == "running":
            if self.loading:
                parts.append("loading the model")
            if self.rate:
                parts.append(f"{self.rate:,.0f} rows/s")
            if self.total is not None and self.rate and self.total > self.done:
                left = (self.total - self.done) / self.rate
                parts.append(f"{format_time(left)} left")
        else:
            seconds = self._before[-1][0] - self.started
            if state == "stopped":
                parts.append("stopped")
            elif self.known is not None and self.done < self.known:
                parts.append(UNREPORTED)
            if self.done and not self.began_before:
                rate = self.done / seconds if seconds else 0.0
                parts.append(f"{rate:,.0f} rows/s, {format_time(seconds)}")
        fraction = self.fraction or 0.0
        if state == "done" and self.estimated:
            fraction = 1.0
        return ProgressLine(", ".join(parts), fraction, state == "stopped")
