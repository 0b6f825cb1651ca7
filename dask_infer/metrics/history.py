"""The last minutes of each model and stage, as points of a line."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import NamedTuple

from dask_infer.metrics.sums import Label, Sums

#: Seconds between two points, points of a line, and lines that are kept, the latest.
STEP, POINTS, LINES = 1.0, 300, 100
#: Seconds over which rows are averaged: workers of a large cluster report as rarely.
AVERAGED = 5.0


class Point(NamedTuple):
    """One moment."""

    at: float
    rows_in: int = 0
    rows: int = 0
    #: Rows a second, read and predicted.
    rate_in: float = 0.0
    rate_out: float = 0.0
    #: Microbatches in the windows, and how many these admit; 0 without stages.
    inside: float = 0.0
    window: float = 0.0


class History:
    """Lines by model and stage; a line where nothing changes gets no points."""

    def __init__(self) -> None:
        self.lines: OrderedDict[Label, deque[Point]] = OrderedDict()

    def update(self, now: float, by_model: Mapping[Label, Sums]) -> None:
        """Add a point to each line that moves; call it every `STEP` seconds."""
        for label, sums in by_model.items():
            line = self.lines.get(label)
            if line is None:
                line = self.lines[label] = deque([Point(now - STEP)], maxlen=POINTS)
            point = _point(now, sums, line)
            last = line[-1]
            if point._replace(at=last.at) == last:
                continue
            if now - last.at > 2 * STEP:  # it stood still until just now
                line.append(last._replace(at=now - STEP))
            line.append(point)
            self.lines.move_to_end(label)
        while len(self.lines) > LINES:
            self.lines.popitem(last=False)


def _point(now: float, sums: Sums, line: deque[Point]) -> Point:
    old = (point for point in reversed(line) if now - point.at >= AVERAGED)
    before = next(old, line[0])
    rows_in, rows = sums.count("rows_in"), sums.count("rows")
    seconds = now - before.at
    return Point(
        now,
        rows_in,
        rows,
        max(0.0, (rows_in - before.rows_in) / seconds),
        max(0.0, (rows - before.rows) / seconds),
        sums.levels.get("inside", 0.0),
        sums.levels.get("window", 0.0),
    )
