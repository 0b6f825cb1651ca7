"""Every error of the package, as it arrives where the result is asked for."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import dask_infer
from dask_infer import errors
from dask_infer.batch.tensor.rows import BadRow
from dask_infer.model.split import CannotSplit


def layers(last):
    """A model of four layers, the last of which does what a test wants."""
    model = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(3)), last)
    for value in model.parameters():
        torch.nn.init.constant_(value, 1)
    return model


def is_real(x):
    """Whether these are rows of a test, not synthetic ones to plan with."""
    return x.device.type != "meta" and bool((x > 1000).any())


class Fails(torch.nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        if is_real(x):
            raise self.make()
        return x


class Grows(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x, x]) if is_real(x) else x


class NotThere:
    def __init__(self):
        raise KeyError("no such thing")


class WantsMore(Exception):
    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code


class HasState(Exception):
    """Holds what does not pickle, in a class that cannot be imported."""


def plain():
    return ValueError("no good")


def with_arguments():
    return WantsMore(7, "no good")


def with_a_lock():
    error = HasState("no good")
    error.lock = threading.Lock()
    return error


def with_a_local_class():
    class Local(Exception):
        def __reduce__(self):
            raise TypeError("cannot be pickled")

    return Local("no good")


def in_a_ring():
    error, wrapper = ValueError("no good"), RuntimeError("wrapper")
    error.__context__, wrapper.__cause__ = wrapper, error
    return error


def deep():
    error = ValueError("no good")
    last = error
    for number in range(2000):
        last.__context__ = ValueError(number)
        last = last.__context__
    return error


def long():
    return ValueError("no good" + " at all" * 100_000)


#: What is asked for, of which rows; what is raised, with which words; its cause.
NUMBERS = [[1001.0], [1002.0], [1003.0], [1004.0]]
FAILS = errors.PartitionError, "failed in forward of .* no good"
TABLE = {
    "input": (
        lambda: layers(torch.nn.Identity()),
        [[1001.0], [1002.0], [1003.0, 1003.5], [1004.0]],
        errors.InputError,
        'column "x": row 2 .*holds 2 values',
        None,
    ),
    "output": (
        lambda: layers(Grows()),
        NUMBERS,
        errors.OutputError,
        "returned 4 rows for a batch of 2 rows",
        None,
    ),
    "load": (
        lambda: NotThere,
        NUMBERS,
        errors.ModelLoadError,
        "raised KeyError when it was built on the worker: 'no such thing'",
        (KeyError, "'no such thing'"),
    ),
    "plain": (lambda: layers(Fails(plain)), NUMBERS, *FAILS, (ValueError, "no good")),
    "arguments": (
        lambda: layers(Fails(with_arguments)),
        NUMBERS,
        *FAILS,
        (WantsMore, "7: no good"),
    ),
    "lock": (
        lambda: layers(Fails(with_a_lock)),
        NUMBERS,
        *FAILS,
        (HasState, "no good"),
    ),
    "local": (
        lambda: layers(Fails(with_a_local_class)),
        NUMBERS,
        *FAILS,
        (Exception, "no good"),
    ),
    "ring": (
        lambda: layers(Fails(in_a_ring)),
        NUMBERS,
        *FAILS,
        (ValueError, "no good"),
    ),
    "deep": (lambda: layers(Fails(deep)), NUMBERS, *FAILS, (ValueError, "no good")),
    "long": (lambda: layers(Fails(long)), NUMBERS, *FAILS, (ValueError, "no good")),
}  # fmt: skip

LAYOUTS = {
    "data": {},
    "remote": {"resources": {"GPU": 1}},
    "stages": {"parallel": dask_infer.Layout(stages=2, microbatch=2)},
}


@pytest.fixture(scope="module")
def pool(store):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(int).result() == 0
        yield pool


def predicted(case, **layout):
    model, rows, *_ = TABLE[case]
    lists = pd.ArrowDtype(pa.list_(pa.float32()))
    frame = pd.DataFrame({"x": pd.Series(rows, dtype=lists)})
    ddf = dd.from_pandas(frame, npartitions=2)
    return ddf.infer.predict(
        model(), columns="x", keep=False, meta="float32", shapes={"x": (1,)}, **layout
    )


def check(case, pred, **scheduler):
    _, _, kind, words, cause = TABLE[case]
    with pytest.raises(kind, match=words) as raised:
        pred.compute(**scheduler)
    assert type(raised.value) is kind
    if cause is not None:
        assert isinstance(raised.value.__cause__, cause[0])
        assert cause[1] in str(raised.value.__cause__)


@pytest.mark.parametrize("case", TABLE)
def test_errors_of_local_schedulers(case, pool):
    pred = predicted(case)
    check(case, pred, scheduler="sync")
    check(case, pred, scheduler="threads")
    check(case, pred, scheduler="processes", pool=pool)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_errors_of_a_cluster(layout, client):
    there = ("input", "output", "arguments", "lock", "ring", "load")
    for case in TABLE if layout == "data" else there:
        if (case, layout) != ("load", "stages"):  # a class has no layers to divide
            check(case, predicted(case, **LAYOUTS[layout]))


@pytest.mark.parametrize("layout", ["remote", "stages"])
def test_what_cannot_be_placed(layout, client):
    asked = {**LAYOUTS[layout], "resources": {"TPU": 1}}
    with dask.config.set({"infer.placement.grace": "1s"}):
        pred = predicted("plain", **asked)
        with pytest.raises(errors.PlacementError, match="TPU"):
            pred.compute()


@pytest.mark.parametrize("layout", [None, *LAYOUTS])
def test_a_partition_error_says_where(layout, client):  # PP-11
    frame = pd.DataFrame({"x": [1.0, 2.0, 3.0, 1004.0]}, index=list("abcd"))
    ddf = dd.from_pandas(frame, npartitions=2)
    pred = ddf.infer.predict(
        layers(Fails(plain)), columns=["x"], meta="float32", **LAYOUTS.get(layout, {})
    )
    scheduler = {} if layout else {"scheduler": "sync"}
    with pytest.raises(errors.PartitionError) as raised:
        pred.compute(**scheduler)
    error = raised.value
    assert (error.partition, error.step) == (1, "forward")
    assert "d" in error.rows
    assert isinstance(error.cause, ValueError)
    if layout is None:
        assert error.worker == "local"
    else:
        assert error.worker in client.scheduler_info(n_workers=-1)["workers"]
    assert (error.stage is None) == (layout in (None, "data"))
    again = pickle.loads(pickle.dumps(error))
    assert list(again.rows) == list(error.rows)
    assert (again.partition, again.stage, again.worker) == (
        *(error.partition, error.stage, error.worker),
    )


def every_error():
    known = [errors.InferError]
    for kind in known:
        known += kind.__subclasses__()
    return known


@pytest.mark.parametrize("kind", every_error())
def test_errors_pickle(kind):
    made = {
        BadRow: ("is no number", 3),
        CannotSplit: ("model", "it has no layers"),
    }
    error = kind(*made.get(kind, ("what; remedy",)))
    error.__cause__ = with_arguments()
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))
    assert isinstance(again.__cause__, WantsMore)
    assert (str(again.__cause__), again.__cause__.code) == ("7: no good", 7)


def test_a_cause_that_cannot_be_unpickled_is_there_as_text():
    error = errors.PartitionError("what; remedy")
    error.__cause__ = WantsMore(7, "no good")
    data = pickle.dumps(error)
    there = data.replace(b"WantsMore", b"WantsLess", 1)  # no such class
    again = pickle.loads(there)
    assert type(again) is errors.PartitionError
    assert str(again.__cause__) == "WantsMore: 7: no good"


def test_a_cause_keeps_its_own_cause_and_place(client):
    class Chained(torch.nn.Module):
        def forward(self, x):
            try:
                return {}["key"]
            except KeyError as error:
                raise ValueError("no good") from error

    ddf = dd.from_pandas(pd.DataFrame({"x": np.arange(4.0)}), npartitions=1)
    with pytest.raises(errors.PartitionError) as raised:
        ddf.infer.predict(Chained(), columns="x", meta="float32").compute()
    cause = raised.value.__cause__
    assert isinstance(cause.__cause__, KeyError)
    assert cause.__traceback__.tb_frame.f_code.co_filename


class Branches(torch.nn.Module):
    """Layers of which one returns something else for more than 32 rows."""

    class Layer(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x), (x if len(x) > 32 else None)

    def __init__(self):
        super().__init__()
        first, last = torch.nn.Linear(1, 4), torch.nn.Linear(4, 1)
        self.layers = torch.nn.ModuleList([first, self.Layer(4, 4), last])

    def forward(self, x):
        x, more = self.layers[1](self.layers[0](x))
        return self.layers[2](x if more is None else x + more)


def in_two_stages(kind, on_error):
    """A model, its rows, and their prediction in batches of some size."""
    torch.manual_seed(0)
    model = kind().eval()
    frame = pd.DataFrame({"x": np.arange(80, dtype="float32")})
    ddf = dd.from_pandas(frame, npartitions=2)

    def pred(rows):
        layout = dask_infer.Layout(stages=2, microbatch=rows)
        options = {"batch_size": rows, "parallel": layout, "on_error": on_error}
        return ddf.infer.predict(model, columns=["x"], **options)["prediction"]

    return model, torch.tensor(frame["x"].to_numpy()[:, None]), pred


@pytest.mark.parametrize("on_error", ["raise", "null", "quarantine"])
def test_a_layer_that_does_otherwise_than_it_was_split_for(on_error, client):
    """Not the fault of a row: it raises whatever becomes of rows."""
    model, rows, pred = in_two_stages(Branches, on_error)

    with torch.inference_mode():
        expected = model(rows[:16])[:, 0]
    np.testing.assert_allclose(pred(16).compute()[:16], expected, rtol=1e-5)
    called = r'model "Branches": .*"layers\.1", called with \(40, 4\)'
    with pytest.raises(errors.OutputError, match=called):
        pred(40).compute()


class AsksSizes(Branches):
    def forward(self, x):
        x, _ = self.layers[1](self.layers[0](x[:, :1]))
        return self.layers[2](x if x.shape[0] ** 0.5 < 5 else -x)


@pytest.mark.parametrize("on_error", ["raise", "null"])
def test_code_that_takes_another_branch_than_it_was_split_along(on_error, client):
    model, rows, pred = in_two_stages(AsksSizes, on_error)

    with torch.inference_mode():
        expected = torch.cat([model(part)[:, 0] for part in rows.split(16)])
    np.testing.assert_allclose(pred(16).compute(), expected, rtol=1e-5)
    if on_error == "null":  # smaller batches take the branch
        np.testing.assert_allclose(pred(40).compute(), expected, rtol=1e-5)
        return
    with pytest.raises(errors.InputError, match="was split along what its code does"):
        pred(40).compute()
