"""A runner for tests of a partition: it doubles column "x" and keeps account."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dask_infer.batch.sizing.hill_climber import FixedSize
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.faults.deadline import DeadlineExceeded
from dask_infer.replica.sizes import Sizes
from dask_infer.run.partition import Partition
from dask_infer.run.runner import Runner
from dask_infer.spec import (
    Argument,
    Blob,
    Inputs,
    Job,
    ModelSpec,
    OutputColumn,
    Outputs,
    UserCode,
)
from dask_infer.spec.token_rules import TokenRules


class OrderedRunner(Runner):
    """Outputs come when they are waited for, in the order of sending.

    Parameters
    ----------
    window
        Most batches in flight.
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
    inputs = Inputs((Argument(("x",)),), ("x",))

    window = 1

    def __init__(self, window=1, size=10, *, most=10**9, bad=(), hangs=(), late=False):
        self.window = window
        self.most = most
        self.bad = {*bad}
        self.hangs = {*hangs}
        self.late = late
        self.size = FixedSize(size)
        self.sizes = Sizes("double", ())
        self.in_flight = []
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

    def send(self, batch, rows=None):
        self.fresh = True
        self.sent.append(batch.rows)
        failure = self._failure(batch)
        if failure is not None and not self.late:
            raise failure
        self.in_flight.append(batch)
        self.peak = max(self.peak, len(self.in_flight))
        return lambda: self._answer(batch, failure)

    def count(self, rows):
        self.order.append(rows)

    def discard(self):
        assert self.fresh
        self.fresh = False

    def is_out_of_memory(self, error):
        return isinstance(error, MemoryError)

    def release_memory(self):
        assert not self.in_flight

    def _answer(self, batch, failure):
        assert self.in_flight.pop(0) is batch
        if failure is not None:
            raise failure
        return [(None, batch.args[0] * 2)]

    def _failure(self, batch):
        values = {*batch.args[0].tolist()}
        if values & self.hangs:
            self.timeouts += 1
            return DeadlineExceeded("forward did not end within 1 s")
        if len(values) > self.most:
            return MemoryError()
        return ValueError("bad") if values & self.bad else None


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
    return Partition(frame, request, UserCode(), runner).columns()
