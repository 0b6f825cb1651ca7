"""Batches encoded ahead: each once, in order, errors too, and no thread left."""

from __future__ import annotations

import contextlib
import threading

import dask
import numpy as np
import pytest
from distributed import get_worker

from dask_infer.batch.sizing.hill_climber import FixedSize
from dask_infer.run.prefetch import Prefetch
from dask_infer.run.work import ConsecutiveWork, row_count


def run(prefetch, failing=()):
    """Take every batch; those that start at a row in `failing` do not fit."""
    failing, done = {*failing}, []
    with contextlib.closing(prefetch):
        while (rows := prefetch.take()) is not None:
            prefetch.batch(rows)
            if rows.start in failing:
                failing.discard(rows.start)
                prefetch.halve(rows)
            else:
                done.append(rows)
    return done


def test_batches_come_in_order():
    prefetch = Prefetch(ConsecutiveWork(10, FixedSize(3)), row_count, 2)
    assert [rows.start for rows in run(prefetch)] == [0, 3, 6, 9]


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_no_more_than_so_many_are_encoded_ahead(ahead):
    encoded, taken, most = [], 0, 0
    prefetch = Prefetch(ConsecutiveWork(30, FixedSize(1)), encoded.append, ahead)
    with contextlib.closing(prefetch):
        while (rows := prefetch.take()) is not None:
            prefetch.batch(rows)
            taken += 1
            most = max(most, len(encoded) - taken)
    assert len(encoded) == 30
    assert most <= ahead


def test_encoding_goes_on_while_the_forward_runs():
    begun = threading.Event()

    def encode(rows):
        if rows.start:
            begun.set()

    prefetch = Prefetch(ConsecutiveWork(2, FixedSize(1)), encode, 1)
    with contextlib.closing(prefetch):
        prefetch.batch(prefetch.take())
        assert begun.wait(30)  # the second batch was not asked for


def test_an_error_comes_out_with_its_batch():
    def encode(rows):
        if rows.start == 2:
            raise ValueError("bad row")
        return rows.start

    prefetch = Prefetch(ConsecutiveWork(4, FixedSize(1)), encode, 3)
    with contextlib.closing(prefetch):
        assert prefetch.batch(prefetch.take()) == 0
        assert prefetch.batch(prefetch.take()) == 1
        with pytest.raises(ValueError, match="bad row"):
            prefetch.batch(prefetch.take())
        assert prefetch.batch(prefetch.take()) == 3


def test_what_was_encoded_for_a_size_that_does_not_fit_is_encoded_again():  # DI-09
    prefetch = Prefetch(ConsecutiveWork(40, FixedSize(8)), row_count, 3)
    done = run(prefetch, failing=[8])
    assert np.concatenate([np.arange(40)[rows] for rows in done]).tolist() == [
        *range(40)
    ]
    assert max(row_count(rows) for rows in done[1:]) == 4


def test_other_rows_can_be_asked_for_in_between():
    prefetch = Prefetch(ConsecutiveWork(4, FixedSize(2)), row_count, 2)
    with contextlib.closing(prefetch):
        first = prefetch.take()
        assert prefetch.batch(slice(3, 4)) == 1
        assert prefetch.batch(first) == 2


@pytest.mark.parametrize("ahead", [0, 2])
def test_preprocess_runs_beside_the_forward_or_not(ddf, ahead):
    def preprocess(frame):
        return frame.assign(a=threading.get_ident())

    def same_thread(thread):
        return thread == threading.get_ident()

    with dask.config.set({"infer.batch.prefetch": ahead, "scheduler": "sync"}):
        pred = ddf.infer.predict(
            same_thread, columns="a", preprocess=preprocess, batch_size=7, meta="bool"
        )
        assert set(pred["prediction"].compute()) == {not ahead}


def test_preprocess_fails_on_its_rows_only(ddf):  # BM-17
    def preprocess(frame):
        if (frame["id"] == 57).any():
            raise ValueError("57")
        return frame[["a"]]

    with dask.config.set(scheduler="sync"):
        pred = ddf.infer.predict(
            lambda a: a[:, 0] if a.ndim > 1 else a,
            columns=["id", "a"],
            preprocess=preprocess,
            batch_size=8,
            on_error="null",
            meta="float32",
        ).compute()
    assert pred.index[pred["prediction"].isna()].tolist() == [57 * 2]


def test_preprocess_still_knows_its_worker(client, ddf):
    def preprocess(frame):
        get_worker()
        return frame

    pred = ddf.infer.predict(
        lambda x: x[:, 0], columns=["a"], preprocess=preprocess, meta="float32"
    )
    assert len(pred.compute()) == 100
