"""The feeder's loop, on a lane whose outputs come when they are waited for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dask_infer.batch.size import FixedSize
from dask_infer.parallel.feeder import Feeder
from dask_infer.spec import (
    Argument,
    Blob,
    Code,
    Inputs,
    Job,
    ModelSpec,
    OutputColumn,
    Outputs,
)

N = 100


class Line:
    """A lane that doubles column "x" and keeps account of what is under way."""

    interface = "numpy"
    floating = None
    accepts = None
    where = "nowhere"

    def __init__(self, window, most=N):
        self.window = window
        #: More rows than this do not fit.
        self.most = most
        self.size = FixedSize(10)
        self.under_way = []
        self.peak = 0
        self.order = []

    def batch_size(self, signature, bytes_per_row, bound):
        return self.size

    def send(self, batch):
        if batch.rows > self.most:
            raise MemoryError
        self.under_way.append(batch)
        self.peak = max(self.peak, len(self.under_way))
        return Answer(self, batch)

    def count(self, rows):
        self.order.append(rows)

    def discard(self):
        raise AssertionError("nothing hangs here")

    def is_out_of_memory(self, error):
        return isinstance(error, MemoryError)

    def first_out_of_memory(self):
        return False

    def release_memory(self):
        assert not self.under_way


class Answer:
    def __init__(self, lane, batch):
        self.lane, self.batch = lane, batch

    def wait(self):
        assert self.lane.under_way.pop(0) is self.batch  # in the order of sending
        return [(None, self.batch.args[0] * 2)]


def job():
    return Job(
        model=ModelSpec("k", "double", "callable"),
        inputs=Inputs((Argument(("x",)),), ("x",)),
        outputs=Outputs((OutputColumn("y", "int64"),)),
        code=Blob("c"),
    )


def feed(lane):
    frame = pd.DataFrame({"x": np.arange(N)})
    return Feeder(frame, job(), Code(), lane).columns()["y"]


@pytest.mark.parametrize("window", [1, 2, 6])
def test_the_window_is_filled_and_never_exceeded(window):  # PP-9
    lane = Line(window)
    assert list(feed(lane)) == list(range(0, 2 * N, 2))
    assert lane.peak == window
    assert not lane.under_way


@pytest.mark.parametrize("window", [1, 2, 6])
@pytest.mark.parametrize("most", [1, 3, 9])
def test_rows_run_once_each_whatever_is_under_way(window, most):  # DI-09
    lane = Line(window, most)
    assert list(feed(lane)) == list(range(0, 2 * N, 2))
    assert sum(lane.order) == N
    assert max(lane.order) <= most
