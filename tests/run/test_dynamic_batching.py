"""Batches of several partitions in one forward: each feeder gets its own rows."""

from __future__ import annotations

import contextlib
import threading
import time

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.run.dynamic_batching import Batcher, form_of, joined


def batch(*values, width=1):
    rows = torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, width)
    return Batch((rows,), rows=len(values))


class Device:
    """A device that somebody holds until all feeders have submitted their batches."""

    def __init__(self, exchange_feeders):
        self.lock = threading.Lock()
        self.feeders = exchange_feeders
        self.sizes = []

    def double(self, given):
        self.sizes.append(given.rows)
        return lambda: [(None, given.args[0][:, 0] * 2)]


def send_all(batches, run=None, most=100, at_once=False, batcher=None, **options):
    """Send each batch from a thread of its own while the device is held."""
    device = Device(len(batches))
    batcher = batcher or Batcher(threading.Lock(), at_once)
    device.lock = batcher.device
    outcomes = [None] * len(batches)

    def feed(place):
        try:
            pending = batcher.send(
                batches[place], run or device.double, most, **options
            )
            ((_, value),) = pending()
            outcomes[place] = value.to_dense().tolist()
        except Exception as error:
            outcomes[place] = error

    threads = [threading.Thread(target=feed, args=(i,)) for i in range(len(batches))]
    with device.lock:
        for thread in threads:
            thread.start()
        while len(batcher._waiting) < len(batches):
            time.sleep(0.001)
    for thread in threads:
        thread.join(30)
    assert not batcher._waiting
    return outcomes, device.sizes


@pytest.mark.parametrize("at_once", [False, True])
def test_what_waits_runs_together_and_comes_back_apart(at_once):  # RY-13
    batches = [batch(1, 2), batch(3), batch(4, 5, 6)]
    outcomes, sizes = send_all(batches, at_once=at_once)
    assert outcomes == [[2, 4], [6], [8, 10, 12]]
    assert sizes == [6]


def test_no_more_rows_than_the_policy_allows():
    batches = [batch(*range(4)) for _ in range(5)]
    outcomes, sizes = send_all(batches, most=8)
    assert outcomes == [[0, 2, 4, 6]] * 5
    assert sorted(sizes) == [4, 8, 8]


def test_rows_of_another_shape_or_dtype_stay_apart():
    other = Batch((torch.tensor([[5.0]], dtype=torch.float64),), rows=1)
    outcomes, sizes = send_all([batch(1), batch(2, width=3), other])
    assert outcomes == [[2], [4], [10]]
    assert sizes == [1, 1, 1]


def test_only_the_feeder_of_a_bad_row_sees_its_error():
    def run(given):
        if (given.args[0] == 3).any():
            raise ValueError("three")
        return lambda: [(None, given.args[0][:, 0] * 2)]

    outcomes, _ = send_all([batch(1, 2), batch(3), batch(4)], run)
    assert outcomes[0] == [2, 4]
    assert outcomes[2] == [8]
    assert isinstance(outcomes[1], ValueError)


def test_lack_of_memory_for_all_is_no_lack_for_each():  # DI-09
    def run(given):
        if given.rows > 2:
            raise MemoryError
        return lambda: [(None, given.args[0][:, 0])]

    outcomes, _ = send_all([batch(1, 2), batch(3), batch(4, 5)], run)
    assert outcomes == [[1, 2], [3], [4, 5]]


def test_outputs_without_rows_are_computed_by_each():
    def run(given):
        return lambda: [(None, given.args[0].sum()[None])]

    outcomes, _ = send_all([batch(1, 2), batch(3)], run)
    assert outcomes == [[3], [3]]


def test_sparse_outputs_are_computed_by_each():
    def run(given):
        return lambda: [(None, given.args[0].to_sparse())]

    outcomes, _ = send_all([batch(1, 2), batch(3)], run)
    assert outcomes == [[[1], [2]], [[3]]]


@pytest.mark.parametrize("at_once", [False, True])
def test_what_cannot_be_divided_is_not_joined_again(at_once):
    sizes = []

    def run(given):
        sizes.append(given.rows)
        return lambda: [(None, given.args[0].sum()[None])]

    batcher = Batcher(threading.Lock(), at_once)
    for _ in range(3):
        outcomes, _ = send_all([batch(1, 2), batch(3)], run, batcher=batcher)
        assert outcomes == [[3], [3]]
    assert sorted(sizes) == [1] * 3 + [2] * 3 + [3]


def test_what_fails_together_again_and_again_is_not_joined_any_more():
    joins = []

    def run(given):
        if given.rows > 2:
            joins.append(given.rows)
            raise ValueError("two at most")
        return lambda: [(None, given.args[0][:, 0])]

    batcher = Batcher(threading.Lock())
    for _ in range(6):
        outcomes, _ = send_all([batch(1, 2), batch(3)], run, batcher=batcher)
        assert outcomes == [[1, 2], [3]]
    assert joins == [3] * 3


@pytest.mark.parametrize("at_once", [False, True])
def test_the_policy_hears_of_a_joined_forward_that_was_too_large(at_once):
    heard, waits = [], []

    def run(given):
        def wait():
            if given.rows > 2:
                waits.append(1)
                raise MemoryError
            return [(None, given.args[0][:, 0])]

        return wait

    outcomes, _ = send_all(
        [batch(1, 2), batch(3)], run, at_once=at_once, too_many=heard.append
    )
    assert outcomes == [[1, 2], [3]]
    assert (heard, waits) == ([3], [1])


def test_a_failure_of_a_copy_back_is_met_alone():
    def run(given):
        def wait():
            if given.rows > 1:
                raise RuntimeError("the copy failed")
            return [(None, given.args[0][:, 0])]

        return wait

    outcomes, _ = send_all([batch(1), batch(2)], run)
    assert outcomes == [[1], [2]]


def test_outputs_that_the_next_forward_overwrites_are_taken_at_once():
    memory = torch.zeros(10)

    def run(given):
        memory[: given.rows] = given.args[0][:, 0]
        return lambda: [(None, memory[: given.rows])]

    batcher = Batcher(contextlib.nullcontext(), at_once=True)
    request = batch(7)
    first = batcher.send(request, run, 10)
    assert [value.tolist() for _, value in first()] == [[7]]
    outcomes, _ = send_all([batch(1, 2), batch(3)], run, at_once=True)
    assert outcomes == [[1, 2], [3]]


def test_arguments_by_name_are_joined_by_name():
    one = Batch((), {"a": torch.ones(1, 2), "b": torch.zeros(1)}, rows=1)
    two = Batch((), {"b": torch.ones(2), "a": torch.zeros(2, 2)}, rows=2)
    assert form_of(one) == form_of(two)
    both = joined([one, two])
    assert both.rows == 3
    assert both.kwargs["b"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("args", [(), (["a", "b"],), (torch.tensor(1.0),)])
def test_what_has_no_rows_of_tensors_goes_alone(args):
    assert form_of(Batch(args, rows=2)) is None


class Counts(torch.nn.Module):
    """Says with each row how many rows its forward had."""

    def forward(self, x):
        time.sleep(0.01)
        return {"y": x[:, 0] * 2, "rows": torch.full((len(x),), len(x))}


@pytest.mark.parametrize("share", [False, True])
def test_small_partitions_share_forwards(share):  # RY-13
    frame = pd.DataFrame({"x": np.arange(200, dtype="float32")})
    ddf = dd.from_pandas(frame, npartitions=40)
    with dask.config.set(
        {"scheduler": "threads", "num_workers": 8, "infer.batch.share": share}
    ):
        pred = ddf.infer.predict(Counts(), columns=["x"], batch_size=20)
        result = pred.compute()
    np.testing.assert_array_equal(result["y"], frame["x"] * 2)
    assert result["rows"].max() <= 20
    assert (result["rows"].max() > 5) == share


@pytest.mark.parametrize(
    "options",
    [
        {"row_wise": False},
        {"timeout": 60},
        {"postprocess": lambda output, frame: output},
    ],
)
def test_what_must_not_be_shared_is_not(options):
    frame = pd.DataFrame({"x": np.arange(60, dtype="float32")})
    ddf = dd.from_pandas(frame, npartitions=12)
    settings = {"scheduler": "threads", "num_workers": 4, "infer.batch.share": True}
    with dask.config.set(settings):
        pred = ddf.infer.predict(Counts(), columns=["x"], batch_size=20, **options)
        result = pred.compute()
    assert result["rows"].max() == 5


def test_a_bad_row_among_shared_forwards_is_isolated():
    class Refuses(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.005)
            if 33 in x:
                raise ValueError("33")
            return x[:, 0] + 0

    frame = pd.DataFrame({"x": np.arange(60, dtype="float32")})
    ddf = dd.from_pandas(frame, npartitions=12)
    settings = {"scheduler": "threads", "num_workers": 4, "infer.batch.share": True}
    with dask.config.set(settings):
        pred = ddf.infer.predict(
            Refuses(), columns=["x"], batch_size=20, on_error="null", meta="float32"
        )
        result = pred.compute()
    assert result.index[result["prediction"].isna()].tolist() == [33]
