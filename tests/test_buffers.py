"""Batches own their memory, whoever keeps or reuses what they were made of: ZO-5."""

from __future__ import annotations

import time

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

import dask_infer  # noqa: F401

pytest.importorskip("sklearn")

from sklearn.base import BaseEstimator

PDF = pd.DataFrame({"x": np.arange(200.0)})


class Slow(torch.nn.Module):
    """Slower than `preprocess`, so that batches are encoded ahead."""

    def forward(self, x):
        time.sleep(0.002)
        return x.reshape(len(x), -1)[:, 0] * 1.0


class SlowEstimator(BaseEstimator):
    def predict(self, given):
        time.sleep(0.002)
        values = given.to_numpy() if hasattr(given, "to_numpy") else np.asarray(given)
        return values.reshape(len(values), -1)[:, 0] * 1.0


def slow(x):
    time.sleep(0.002)
    return np.stack(x).reshape(len(x), -1)[:, 0] * 1.0


class Refill:
    """Writes each batch into the memory of the one before it."""

    def __init__(self, kind):
        self.kind = kind
        self.memory = None

    def __call__(self, frame):
        if self.memory is None:
            self.memory = np.zeros((10, 1))
        rows = self.memory[: len(frame)]
        rows[:, 0] = frame.x
        return {
            "tensor": lambda: torch.from_numpy(rows),
            "dict": lambda: {"x": torch.from_numpy(rows)},
            "array": lambda: rows,
            "list": lambda: list(rows),
            "frame": lambda: pd.DataFrame(rows, columns=["x"], copy=False),
            "series": lambda: pd.Series(rows[:, 0], name="x", copy=False),
        }[self.kind]()


CASES = [
    *((Slow(), kind) for kind in ("tensor", "dict", "array", "list", "frame")),
    *((slow, kind) for kind in ("array", "list", "frame")),
    *((SlowEstimator(), kind) for kind in ("array", "list", "frame", "series")),
]


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
@pytest.mark.parametrize(
    ("model", "kind"), CASES, ids=[f"{type(m).__name__}-{k}" for m, k in CASES]
)
def test_preprocess_may_refill_what_it_returned(model, kind, scheduler):
    ddf = dd.from_pandas(PDF, npartitions=2)
    pred = ddf.infer.predict(
        model, columns="x", preprocess=Refill(kind), batch_size=10, meta="float64"
    )
    # Each thread refills memory of its own.
    with dask.config.set({"infer.batch.prefetch": 2}):
        rows = pred.prediction.compute(scheduler=scheduler, num_workers=1)
    assert rows.tolist() == PDF.x.tolist()


def test_preprocess_may_refill_on_a_cluster(client):
    ddf = dd.from_pandas(PDF, npartitions=2)
    pred = ddf.infer.predict(
        Slow(),
        columns="x",
        preprocess=Refill("tensor"),
        batch_size=10,
        meta="float64",
    )
    assert pred.prediction.compute().tolist() == PDF.x.tolist()


def test_a_tokenizer_may_refill_what_it_returned():
    memory = np.zeros((4, 2), np.int64)
    frame = pd.DataFrame({"t": ["a", "bb", "cc", "d"]})

    def tokenizer(texts):
        lengths = np.array([len(text) for text in texts])
        rows = memory[: len(texts), : lengths.max()]
        rows[:] = lengths[:, None]
        mask = np.arange(lengths.max()) < lengths[:, None]
        return {"input_ids": rows, "attention_mask": mask.astype(int)}

    class First(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids[:, 0]

    ddf = dd.from_pandas(frame, npartitions=1)
    pred = ddf.t.infer.predict(First(), tokenizer=tokenizer, meta="int64")
    assert pred.compute().tolist() == [1, 2, 2, 1]


def emptied(x):
    total = x.sum(axis=1)
    x[:] = 0
    return total


class Emptied(torch.nn.Module):
    def forward(self, x):
        total = x.sum(1)
        x.zero_()
        return total


@pytest.mark.parametrize("model", [emptied, Emptied()])
@pytest.mark.parametrize("columns", [["x"], ["x", "y"]])
def test_a_model_may_change_its_input(model, columns):
    frame = PDF.assign(y=1.0)
    ddf = dd.from_pandas(frame, npartitions=2)
    pred = ddf.infer.predict(model, columns=columns, meta="float64").compute()
    pd.testing.assert_frame_equal(pred[["x", "y"]], frame)
    assert pred.prediction.tolist() == frame[columns].sum(axis=1).tolist()
