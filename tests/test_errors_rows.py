"""`on_error`, `timeout` and out-of-memory as users meet them: API sections 4 and 7."""

import contextlib
import gc
import os
import time
import weakref
from dataclasses import replace
from decimal import Decimal

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from dask.dataframe.utils import assert_eq
from hypothesis import given, settings
from hypothesis import strategies as st

import dask_infer
from dask_infer import ModelLoadError, OutputError, PartitionError
from dask_infer.faults.deadline import abandoned_threads
from dask_infer.replica.worker_place import current_place
from dask_infer.run.local_runner import LocalRunner
from dask_infer.run.partition import Partition, predict_rows, read_code

N = 40
BAD = [3, 7, 25]


@pytest.fixture(autouse=True)
def in_this_process():
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def pdf():
    return pd.DataFrame(
        {"a": np.arange(N, dtype="float32"), "t": [f"text {i}" for i in range(N)]},
        index=pd.Index(np.arange(N) * 10, name="key"),
    )


@pytest.fixture
def ddf(pdf):
    return dd.from_pandas(pdf, npartitions=2)


def fails(values):
    if np.isin(np.asarray(values), BAD).any():
        raise ValueError("bad row")


def picky(x):
    fails(x)
    return x * 2


class Sum(torch.nn.Module):
    def forward(self, x):
        return x.sum(dim=1)


def check(result, step="forward", message="ValueError: bad row"):
    """Exactly the bad rows are missing, with step and message; all others are there."""
    bad = result["a"].isin(BAD)
    assert result["prediction"].isna().tolist() == bad.tolist()
    good = result[~bad]
    np.testing.assert_allclose(good["prediction"].astype("f8"), 2 * good["a"])
    errors = result["infer_error"]
    assert errors[~bad].isna().all()
    assert errors[bad].str.startswith(f"{step}: {message}").all()


# --- where rows fail -----------------------------------------------------------------


def test_bad_rows_in_the_forward(ddf):  # BM-18
    pred = ddf.infer.predict(picky, columns="a", meta="float32", on_error="quarantine")
    check(pred.compute())


def test_bad_rows_in_preprocess(ddf):  # BM-17
    def preprocess(frame):
        fails(frame["a"])
        return frame * 2

    pred = ddf.infer.predict(
        Sum(), columns=["a"], preprocess=preprocess, on_error="quarantine"
    )
    check(pred.compute(), "preprocess")


def test_bad_rows_in_postprocess(ddf):  # BM-19
    def postprocess(output, frame):
        fails(frame["a"])
        return output * 2

    pred = ddf.infer.predict(
        Sum(), columns=["a"], postprocess=postprocess, on_error="quarantine"
    )
    check(pred.compute(), "postprocess")


def test_bad_rows_in_what_the_model_returns(ddf):  # BM-20
    pred = ddf.infer.predict(
        lambda x: [Decimal(2 * v) if v not in BAD else "none" for v in x.tolist()],
        columns="a",
        meta=pd.ArrowDtype(pa.decimal128(9, 1)),
        on_error="quarantine",
    )
    check(pred.compute(), "output", "OutputError: output column")


def test_a_model_that_leaves_rows_out_raises(ddf):  # ZO-2
    pred = ddf.infer.predict(
        lambda x: 2 * x[~np.isin(x, BAD)],
        columns="a",
        meta="float32",
        on_error="quarantine",
    )
    with pytest.raises(OutputError, match=r"1\d rows for a batch of 20"):
        pred.compute()


def test_rows_that_cannot_become_tensors():  # BM-21
    frame = pd.DataFrame({"x": pd.array([1, None, 3, 4, 5], "Int64")})
    pred = dd.from_pandas(frame, npartitions=1).infer.predict(
        torch.nn.Embedding(9, 2), columns="x", on_error="quarantine"
    )
    result = pred.compute()
    assert result["prediction"].isna().tolist() == [False, True, False, False, False]
    assert result["infer_error"][1].startswith('input: InputError: column "x": row 1')


def test_a_ragged_row_is_left_out():  # BM-21
    rows = [[1.0, 2.0]] * 5 + [[1.0]] + [[3.0, 4.0]] * 5
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(pd.DataFrame({"x": rows}), npartitions=1)
        pred = ddf.infer.predict(
            Sum(), columns="x", shapes={"x": (2,)}, on_error="null"
        )
        result = pred["prediction"].compute()
    assert result.isna().tolist() == [i == 5 for i in range(11)]


def test_a_text_that_the_tokenizer_refuses(ddf):  # BM-21
    def tokenizer(texts):
        if any(text.endswith(" 7") for text in texts):
            raise ValueError("no seven")
        return {"x": [[float(text.split()[1])] for text in texts]}

    pred = ddf.infer.predict(
        lambda x: np.asarray(x)[:, 0],
        columns="t",
        tokenizer=tokenizer,
        meta="float64",
        on_error="quarantine",
    )
    result = pred.compute()
    assert result.index[result["infer_error"].notna()].tolist() == [70]
    assert "no seven" in result["infer_error"][70]


# --- columns -------------------------------------------------------------------------


def everything(x):
    fails(x)
    return {
        "f": x,
        "i": x.astype("int64"),
        "b": x > 5,
        "s": [str(v) for v in x],
        "v": np.stack([x, x], axis=1),
    }


DTYPES = {
    "f": "float32",
    "i": "int64",
    "b": "bool",
    "s": "string",
    "v": "tensor[float32, (2,)]",
}


@pytest.mark.parametrize("on_error", ["null", "quarantine"])
def test_outputs_are_nullable(ddf, on_error):
    pred = ddf.infer.predict(everything, columns="a", meta=DTYPES, on_error=on_error)
    result = pred.compute()
    assert_eq(pred, result)
    assert result["f"].dtype == "float32"
    assert result["i"].dtype == "Int64"
    assert result["b"].dtype == "boolean"
    assert pd.api.types.is_string_dtype(result["s"].dtype)
    assert ("infer_error" in result) == (on_error == "quarantine")
    bad = result["a"].isin(BAD)
    for name in DTYPES:
        assert result[name].isna().tolist() == bad.tolist(), name


def test_quarantine_goes_through_parquet(ddf, tmp_path):
    pred = ddf.infer.predict(
        everything, columns="a", meta=DTYPES, on_error="quarantine"
    )
    pred.to_parquet(tmp_path / "out")
    back = pd.read_parquet(tmp_path / "out")
    bad = back["a"].isin(BAD)
    assert back["infer_error"].notna().tolist() == bad.tolist()
    for name in DTYPES:
        assert back[name].isna().tolist() == bad.tolist(), name
    good = dd.read_parquet(tmp_path / "out")
    good = good[good["infer_error"].isna()]
    assert len(good) == N - len(BAD)
    assert_eq(good["i"].astype("int64"), good["a"].astype("int64"), check_names=False)


def test_reading_only_the_errors_runs_the_model(ddf):  # DI-19
    pred = ddf.infer.predict(picky, columns="a", meta="float32", on_error="quarantine")
    errors = pred["infer_error"]
    assert list(pred[["infer_error"]].optimize().columns) == ["infer_error"]
    assert errors.compute().notna().sum() == len(BAD)
    assert (~errors.isna()).sum().compute() == len(BAD)


def test_a_filter_on_the_errors_stays_above_the_model(ddf):
    pred = ddf.infer.predict(picky, columns="a", meta="float32", on_error="quarantine")
    good = pred[pred["infer_error"].isna()].compute()
    assert good["a"].tolist() == [a for a in range(N) if a not in BAD]
    inputs = pred[pred["a"] > 30].compute()
    assert len(inputs) == 9


def test_a_query_reads_neither_prediction_nor_error(ddf):
    pred = ddf.infer.predict(picky, columns="a", meta="float32", on_error="quarantine")
    assert pred[["t"]].optimize().expr._name == ddf[["t"]].optimize().expr._name
    assert len(pred) == N


def test_infer_error_is_reserved(ddf, pdf):
    with pytest.raises(ValueError, match="infer_error"):
        ddf.infer.predict(Sum(), columns=["a"], output="infer_error")
    taken = dd.from_pandas(pdf.assign(infer_error="x"), npartitions=1)
    with pytest.raises(ValueError, match="which the input has already"):
        taken.infer.predict(Sum(), columns=["a"], on_error="quarantine")
    kept = taken.infer.predict(Sum(), columns=["a"], on_error="null")
    assert set(kept["infer_error"].compute()) == {"x"}


@pytest.mark.parametrize("meta", ["float32", {"y": "float32", "infer_error": "string"}])
def test_infer_error_is_added_whether_named_or_not(ddf, meta):
    pred = ddf.infer.predict(picky, columns="a", meta=meta, on_error="quarantine")
    assert list(pred.columns)[-1] == "infer_error"
    assert pred.columns.to_list().count("infer_error") == 1


def test_empty_partitions_have_the_error_column(ddf):  # DI-11
    pred = ddf[ddf.a > 100].infer.predict(
        picky, columns="a", meta={"i": "int64"}, on_error="quarantine"
    )
    assert_eq(pred, pred.compute())
    assert pred.compute().dtypes["i"] == "Int64"


def test_a_series_with_quarantine_gives_both_columns(ddf):
    pred = ddf["a"].infer.predict(picky, meta="float32", on_error="quarantine")
    assert list(pred.columns) == ["prediction", "infer_error"]


def test_an_unknown_choice_is_refused(ddf):
    with pytest.raises(ValueError, match=r"'ignore': pass one of 'raise', 'null', 'q"):
        ddf.infer.predict(picky, columns="a", meta="float32", on_error="ignore")


# --- transparency --------------------------------------------------------------------


@settings(max_examples=25, deadline=None, database=None)
@given(
    bad=st.sets(st.integers(0, N - 1)),
    partitions=st.integers(1, 5),
    batch_size=st.one_of(st.just("auto"), st.integers(1, 9)),
)
def test_null_equals_the_good_rows_and_nothing_else(bad, partitions, batch_size):
    def model(x):
        if {*x.tolist()} & bad:
            raise ValueError("bad")
        return x * 2

    frame = pd.DataFrame({"a": np.arange(N, dtype="float64")})
    with dask.config.set({"infer.errors.max-fraction": 1.0, "scheduler": "sync"}):
        pred = dd.from_pandas(frame, npartitions=partitions).infer.predict(
            model, columns="a", meta="float64", on_error="null", batch_size=batch_size
        )
        result = pred.compute()
    expected = (2 * frame["a"]).mask(frame["a"].isin(bad))
    pd.testing.assert_series_equal(result["prediction"], expected, check_names=False)


def test_sorted_texts_keep_their_rows(ddf, pdf):  # CF-04
    def tokenizer(texts):
        return {"x": [[1] * (int(t.split()[1]) % 6 + 1) for t in texts]}

    def model(x, attention_mask):
        lengths = attention_mask.sum(axis=1)
        if (lengths == 4).any():
            raise ValueError("four")
        return lengths

    pred = ddf.infer.predict(
        model, columns="t", tokenizer=tokenizer, meta={"n": "int64"}, on_error="null"
    )
    result = pred["n"].compute()
    expected = pd.Series(np.arange(N) % 6 + 1, index=pdf.index, dtype="Int64", name="n")
    pd.testing.assert_series_equal(result, expected.mask(expected == 4))


# --- the fault of no row -------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["null", "quarantine"])
@pytest.mark.parametrize(
    "error",
    [
        ImportError("no library"),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
    ],
    ids=["library", "device"],
)
def test_what_is_no_rows_fault_raises(ddf, on_error, error):
    def model(x):
        raise error

    pred = ddf.infer.predict(model, columns="a", meta="float32", on_error=on_error)
    with pytest.raises(PartitionError, match="failed in forward") as raised:
        pred.compute()
    assert type(raised.value.__cause__) is type(error)
    lost = isinstance(error, torch.AcceleratorError)
    assert ("restart the worker" in str(raised.value)) is lost


def test_a_model_that_cannot_load_raises(ddf):
    class Broken:
        def __init__(self):
            raise OSError("no weights")

    pred = ddf.infer.predict(Broken, columns="a", meta="float32", on_error="null")
    with pytest.raises(ModelLoadError, match="no weights"):
        pred.compute()


def test_every_row_alike_raises(ddf):
    def model(x):
        return x.no_such_attribute

    pred = ddf.infer.predict(model, columns="a", meta="float32", on_error="null")
    with pytest.raises(PartitionError, match="no_such_attribute"):
        pred.compute()


def test_a_broken_promise_keeps_its_remedy():
    ddf = dd.from_pandas(pd.DataFrame({"a": np.arange(6.0)}), npartitions=1)
    pred = ddf.infer.predict(
        lambda x: np.array(["text"] * len(x)),
        columns="a",
        meta="float32",
        on_error="null",
    )
    with pytest.raises(OutputError, match="meta="):
        pred.compute()


def test_the_share_travels_with_the_job(ddf):
    with dask.config.set({"infer.errors.max-fraction": 0.01}):
        pred = ddf.infer.predict(
            lambda x: fails(x % 4) or x, columns="a", meta="float32", on_error="null"
        )
    with pytest.raises(PartitionError, match=r"4 of 20 rows.*share of 0\.01"):
        pred.compute()


@pytest.mark.parametrize("share", [-0.1, 1.5, "half", True])
def test_a_share_that_is_none_is_refused(ddf, share):
    with (
        dask.config.set({"infer.errors.max-fraction": share}),
        pytest.raises(ValueError, match=r"infer\.errors\.max-fraction"),
    ):
        ddf.infer.predict(picky, columns="a", meta="float32", on_error="null")


# --- out of memory -------------------------------------------------------------------


class Full(torch.nn.Module):
    """Out of memory above so many rows; sees to it that nothing is held back then."""

    def __init__(self, most, error=MemoryError):
        super().__init__()
        self.most = most
        self.error = error
        self.held = []

    def forward(self, x):
        if isinstance(x, torch._subclasses.FakeTensor):
            return x.sum(dim=1)
        assert not [tensor for tensor in self.held if tensor() is not None]
        activations = x.repeat(1, 10)
        self.held = [weakref.ref(activations), weakref.ref(x)]
        if len(x) > self.most:
            raise self.error("no memory")
        self.held.clear()
        return x.sum(dim=1)


@pytest.mark.parametrize("timeout", [None, 60])
@pytest.mark.parametrize("on_error", ["raise", "null"])
def test_memory_is_free_when_the_rows_are_tried_again(on_error, timeout):  # DI-09
    ddf = dd.from_pandas(pd.DataFrame({"a": np.arange(64.0)}), npartitions=2)
    pred = ddf.infer.predict(
        Full(5), columns=["a"], batch_size=32, on_error=on_error, timeout=timeout
    )
    gc.collect()
    gc.disable()  # what a cycle holds is not free
    try:
        np.testing.assert_allclose(pred["prediction"].compute(), np.arange(64.0))
    finally:
        gc.enable()


def test_memory_of_postprocess_is_free_when_the_error_is_there():  # DI-10
    held = []

    def postprocess(output, frame):
        held.append(weakref.ref(output))
        raise MemoryError

    ddf = dd.from_pandas(pd.DataFrame({"a": np.arange(2.0)}), npartitions=1)
    pred = ddf.infer.predict(Sum(), columns=["a"], postprocess=postprocess)
    job = pred.expr.job
    code = replace(read_code(job.code), postprocess=postprocess)  # not a pickled copy
    with contextlib.ExitStack() as leases:
        runner = LocalRunner(job, code, current_place(), leases)
        partition = Partition(pd.DataFrame({"a": [1.0, 2.0]}), job, code, runner)
        with pytest.raises(PartitionError, match=r"in postprocess of row 0.*one row"):
            partition.columns()
    assert len(held) == 2
    assert [tensor() for tensor in held] == [None, None]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError,
        torch.OutOfMemoryError,
        lambda text: torch.empty(2**50),  # what torch's own allocator says
        lambda text: RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
    ids=["host", "torch", "cpu", "text"],
)
def test_one_warning_says_both_sizes(ddf, caplog, error):  # DI-09
    pred = ddf.infer.predict(Full(6, error), columns=["a"], batch_size=16)
    assert pred["prediction"].compute().tolist() == list(range(N))
    said = [r.getMessage() for r in caplog.records if "out of memory" in r.message]
    (warning,) = said
    assert "with 16 rows; going on with 8. Pass batch_size=8" in warning


def test_memory_for_not_even_one_row(ddf):  # DI-10
    pred = ddf.infer.predict(Full(0), columns=["a"], batch_size=4)
    shapes = r"row \d+, inputs float32 \(1, 1\), on .* of worker local: MemoryError"
    with pytest.raises(PartitionError, match=f"{shapes}.*one row does not fit"):
        pred.compute()


def test_one_row_that_does_not_fit_is_missing(ddf):  # DI-10
    def model(x):
        if 7 in x:
            raise MemoryError
        return x

    pred = ddf.infer.predict(model, columns="a", meta="float32", on_error="quarantine")
    result = pred.compute()
    assert result.index[result["prediction"].isna()].tolist() == [70]
    assert "one row does not fit" in result["infer_error"][70]


# --- hangs ---------------------------------------------------------------------------


class Hangs:
    """Hangs on some values until a file is there; writes a line for each building."""

    def __init__(self, place, *values, load=False):
        self.place, self.values = place, values
        with open(place / "built", "a") as file:
            file.write("x\n")
        if load:
            self.wait()

    def wait(self):
        while not (self.place / "go").exists():
            time.sleep(0.01)

    def __call__(self, x):
        if np.isin(x, self.values).any():
            self.wait()
        return x


@pytest.fixture
def place(tmp_path):
    """Where hanging models look; they go on when the test is over."""
    yield tmp_path
    (tmp_path / "go").touch()
    for thread in abandoned_threads():
        thread.join(30)


def hanging(place, *values, load=False):
    return dask_infer.ModelSource.from_factory(Hangs, place, *values, load=load)


def numbers(rows):
    frame = pd.DataFrame({"a": np.arange(rows, dtype="float64")})
    return dd.from_pandas(frame, npartitions=1)


def test_a_hanging_row_is_missing_and_a_fresh_replica_goes_on(place):  # BM-23, BM-25
    pred = numbers(16).infer.predict(
        hanging(place, 5),
        columns="a",
        meta="float64",
        timeout=1,
        batch_size=8,
        on_error="quarantine",
    )
    result = pred.compute()
    assert result.index[result["prediction"].isna()].tolist() == [5]
    assert "did not end within 1 s" in result["infer_error"][5]
    assert len(abandoned_threads()) == 2  # the batch, then the row alone
    assert len((place / "built").read_text().split()) == 3


def test_a_hanging_forward_raises_and_the_next_call_works(place):  # BM-23, BM-25
    source = hanging(place, 5)
    pred = numbers(8).infer.predict(source, columns="a", meta="float64", timeout=1)
    with pytest.raises(PartitionError, match=r"did not end within 1 s; raise time"):
        pred.compute()
    (place / "go").touch()
    assert len(pred.compute()) == 8
    assert len((place / "built").read_text().split()) == 2


@pytest.mark.parametrize("on_error", ["raise", "null"])
def test_a_hanging_load_raises(place, on_error):  # BM-22
    pred = numbers(8).infer.predict(
        hanging(place, load=True),
        columns="a",
        meta="float64",
        timeout=1,
        on_error=on_error,
    )
    with pytest.raises(ModelLoadError, match=r"not loaded within 1 s"):
        pred.compute()
    (place / "go").touch()
    assert len(pred.compute()) == 8


def test_stuck_threads_do_not_pile_up(place):  # BM-24
    pred = numbers(64).infer.predict(
        hanging(place, *range(0, 64, 8)),
        columns="a",
        meta="float64",
        timeout=0.5,
        batch_size=8,
        on_error="null",
    )
    with (
        dask.config.set({"infer.errors.max-abandoned-threads": 5}),
        pytest.raises(PartitionError, match="5 threads of this process hang"),
    ):
        pred.compute()
    assert len(abandoned_threads()) == 5


def test_what_was_learned_outlives_a_stuck_replica(place, caplog):
    def model(x):
        if len(x) > 4:
            raise MemoryError
        if 9 in x:
            while not (place / "go").exists():
                time.sleep(0.01)
        return x

    pred = numbers(32).infer.predict(
        model,
        columns="a",
        meta="float64",
        timeout=1,
        batch_size=8,
        on_error="null",
    )
    result = pred["prediction"].compute()
    assert result.index[result.isna()].tolist() == [9]
    assert sum("out of memory" in r.message for r in caplog.records) == 1


def test_a_first_forward_that_compiles_counts_as_load(place):
    source = hanging(place, 5)
    pred = numbers(8).infer.predict(
        source, columns="a", meta="float64", timeout=1, on_error="null"
    )
    # A forward that hangs stands in for a compiler that does not end.
    job = pred.expr.job
    job = replace(job, model=replace(job.model, compile=()))
    with pytest.raises(ModelLoadError, match="was not compiled within 1 s"):
        predict_rows(pd.DataFrame({"a": [1.0, 5.0]}), job)
    (place / "go").touch()
    assert len(predict_rows(pd.DataFrame({"a": [1.0, 5.0]}), job)["prediction"]) == 2


# --- clusters ------------------------------------------------------------------------


def test_a_cluster_leaves_out_bad_rows_and_counts_them(client, ddf):  # BM-18
    pred = ddf.infer.predict(picky, columns="a", meta="float32", on_error="quarantine")
    client.get_events("infer-errors")
    before = len(client.get_events("infer-errors") or ())
    check(client.compute(pred).result())
    events = [event for _, event in client.get_events("infer-errors")[before:]]
    assert sum(event["failed"] for event in events) == len(BAD)
    assert all(event["rows"] == N // 2 for event in events)
    assert {event["model"] for event in events} == {"picky"}


def test_a_hang_costs_a_worker_its_replica_and_no_more(client, place):  # BM-25
    source = hanging(place, 3)
    frame = pd.DataFrame({"a": np.arange(32.0)})
    pred = dd.from_pandas(frame, npartitions=4).infer.predict(
        source, columns="a", meta="float64", timeout=2, on_error="null"
    )
    pids = client.run(os.getpid)
    result = client.compute(pred).result()
    assert result.index[result["prediction"].isna()].tolist() == [3]
    assert client.run(os.getpid) == pids
    assert "Hangs" in set(dask_infer.replicas().model)


def test_a_partition_that_is_out_of_memory_leaves_the_worker_alive(client):  # DI-10
    def model(x):
        if (x == 3).any():
            raise MemoryError
        return x

    frame = pd.DataFrame({"a": np.arange(16.0)})
    ddf = dd.from_pandas(frame, npartitions=4)
    pids = client.run(os.getpid)
    raising = ddf.infer.predict(model, columns="a", meta="float64")
    with pytest.raises(PartitionError, match="one row does not fit"):
        client.compute(raising).result()
    pred = ddf.infer.predict(model, columns="a", meta="float64", on_error="null")
    result = client.compute(pred).result()
    assert result.index[result["prediction"].isna()].tolist() == [3]
    assert client.run(os.getpid) == pids
