"""A runner for tests of the feeder: it doubles column "x" and keeps account."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd

from dask_infer.batch.sizing.hill_climber import FixedSize
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.faults.deadline import DeadlineExceeded
from dask_infer.run.feeder import Feeder
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
from dask_infer.spec.token_rules import TokenRules


class Line:
    """Outputs come when they are waited for, in the order of sending.

    Parameters
    ----------
    window
        Most batches under way.
    size
        Most rows of a batch.
    most
        More rows than this do not fit the memory.
    bad, hangs
        Values of "x" on which a forward fails, or never ends.
    late
        Failures come when the outputs are waited for, as from another worker.
    """

    interface = "numpy"
    floating = None
    dtypes = ()
    token_rules = TokenRules()
    where = "nowhere"
    microbatch = None
    inputs = Inputs((Argument(("x",)),), ("x",))

    def __init__(self, window=1, size=10, *, most=10**9, bad=(), hangs=(), late=False):
        self.window = window
        self.most = most
        self.bad = {*bad}
        self.hangs = {*hangs}
        self.late = late
        self.size = FixedSize(size)
        self.under_way = []
        self.peak = 0
        #: Rows of each batch that came back, and of each that was sent.
        self.order = []
        self.sent = []
        self.timeouts = 0
        self.fresh = True

    def batch_size(self, signature, bytes_per_row, bound):
        return self.size

    def token_budget(self, signature, bound):
        return TokenBudget(bound)

    def send(self, batch):
        self.fresh = True
        self.sent.append(batch.rows)
        failure = self._failure(batch)
        if failure is not None and not self.late:
            raise failure
        self.under_way.append(batch)
        self.peak = max(self.peak, len(self.under_way))
        return Answer(self, batch, failure)

    def clock(self):
        return time.perf_counter()

    def count(self, rows):
        self.order.append(rows)

    def discard(self):
        assert self.fresh
        self.fresh = False

    def is_out_of_memory(self, error):
        return isinstance(error, MemoryError)

    def first_out_of_memory(self):
        return False

    def release_memory(self):
        assert not self.under_way

    def _failure(self, batch):
        values = {*batch.args[0].tolist()}
        if values & self.hangs:
            self.timeouts += 1
            return DeadlineExceeded("forward did not end within 1 s")
        if len(values) > self.most:
            return MemoryError()
        return ValueError("bad") if values & self.bad else None


class Answer:
    """Outputs of one batch."""

    def __init__(self, runner, batch, failure):
        self.runner, self.batch, self.failure = runner, batch, failure

    def wait(self):
        assert self.runner.under_way.pop(0) is self.batch
        if self.failure is not None:
            raise self.failure
        return [(None, self.batch.args[0] * 2)]


def feed(runner, rows=100, **job):
    """Columns of a partition whose "x" counts its rows."""
    frame = pd.DataFrame({"x": np.arange(rows)})
    request = Job(
        model=ModelSpec("k", "double", "callable"),
        inputs=runner.inputs,
        outputs=Outputs((OutputColumn("y", "int64"),)),
        code=Blob("c"),
        **job,
    )
    return Feeder(frame, request, Code(), runner).columns()
