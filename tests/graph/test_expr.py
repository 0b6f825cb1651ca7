"""The optimizer and the prediction: what moves below the model, what disappears."""

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from dask.dataframe.utils import assert_eq

import dask_infer  # noqa: F401

ROWS = 1000


class Counting(torch.nn.Module):
    """Counts the rows it is called with, in a file so that any process sees it."""

    def __init__(self, log):
        super().__init__()
        self.log = str(log)
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x):
        if isinstance(x, torch._subclasses.FakeTensor):
            return (x * self.weight).sum(dim=1)
        with open(self.log, "a") as file:
            file.write(f"{len(x)}\n")
        return (x * self.weight).sum(dim=1)


@pytest.fixture
def rows_run(tmp_path):
    """How many rows the model has seen."""
    log = tmp_path / "rows"
    log.touch()

    def count():
        return sum(map(int, log.read_text().split()))

    count.log = log
    return count


@pytest.fixture
def pdf():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(ROWS),
            "a": rng.normal(size=ROWS).astype("float32"),
            "b": rng.normal(size=ROWS).astype("float32"),
            "text": [f"row {i}" for i in range(ROWS)],
        }
    )


@pytest.fixture
def ddf(pdf, tmp_path):
    dd.from_pandas(pdf, npartitions=4).to_parquet(tmp_path / "rows.parquet")
    return dd.read_parquet(tmp_path / "rows.parquet")


@pytest.fixture
def pred(ddf, rows_run):
    return ddf.infer.predict(Counting(rows_run.log), columns=["a", "b"], output="p")


@pytest.fixture
def expected(pdf):
    return pdf.assign(p=pdf.a + 2 * pdf.b)


def read_columns(collection):
    """Columns that the parquet read below a collection takes from its files."""
    from dask.dataframe.dask_expr.io.parquet import ReadParquet

    (read,) = collection.expr.simplify().find_operations(ReadParquet)
    return set(read.columns)


def test_equals_the_model_called_by_hand(pred, expected):
    assert_eq(pred, expected, check_index=False, check_divisions=False)


def test_building_runs_nothing(pred, rows_run):  # DI-01
    assert rows_run() == 0
    assert list(pred.columns) == ["id", "a", "b", "text", "p"]
    assert pred.p.dtype == "float32"


def test_len_runs_no_model(pred, rows_run):  # DI-19
    assert len(pred) == ROWS
    assert rows_run() == 0


def test_head_runs_its_rows_only(pred, rows_run, expected):  # DI-19
    head = pred.head(3)
    assert rows_run() == 3
    pd.testing.assert_frame_equal(
        head.reset_index(drop=True),
        expected.head(3),
        check_dtype=False,
    )


def test_one_partition_runs_alone(pred, rows_run, expected):  # DI-19
    part = pred.partitions[1].compute()
    assert rows_run() == len(part) == ROWS // 4
    assert part["p"].to_list() == pytest.approx(expected["p"][250:500].to_list())


def test_an_unread_prediction_is_not_made(pred, rows_run):  # DI-19
    pred[["id"]].compute()
    pred.index.compute()
    assert rows_run() == 0
    assert read_columns(pred[["id"]]) == {"id"}


def test_only_needed_columns_are_read(pred):  # DI-19
    assert read_columns(pred["p"]) == {"a", "b"}
    assert read_columns(pred[["id", "p"]]) == {"id", "a", "b"}


def test_keep_false_reads_only_inputs(ddf, rows_run):
    pred = ddf.infer.predict(Counting(rows_run.log), columns=["a", "b"], keep=False)
    assert list(pred.columns) == ["prediction"]
    assert read_columns(pred) == {"a", "b"}


def test_a_filter_on_inputs_runs_before_the_model(pred, rows_run, expected):  # DI-19
    few = pred[pred.id < 10]
    assert len(few.compute()) == 10
    assert rows_run() == 10
    assert read_columns(few[["p"]]) == {"id", "a", "b"}


def test_fused_with_the_read(pred):
    from dask.dataframe.dask_expr._expr import Fused

    fused = pred.optimize().expr
    assert isinstance(fused, Fused)
    assert len(pred.optimize().__dask_graph__()) == pred.npartitions
    assert "predictCounting" in fused._name


def test_equal_predictions_are_one_node(ddf, rows_run):
    model = Counting(rows_run.log)
    one = ddf.infer.predict(model, columns=["a", "b"])
    two = ddf.infer.predict(model, columns=["a", "b"])
    assert one._name == two._name


def test_projections_meet_in_one_node(ddf, pred):
    assert (
        (pred[["id", "p"]]["p"]).optimize(fuse=False)._name
        == pred["p"].optimize(fuse=False)._name
    )


PREDICATES = {
    "input": lambda f: f.id < 700,
    "output": lambda f: f.p > 0,
    "both": lambda f: (f.p > 0) & (f.id < 700),
    "either": lambda f: (f.p > 0) | (f.id < 700),
    "inputs": lambda f: (f.a > 0) & (f.b > 0),
    "mixed": lambda f: f.p > f.a,
    "all": lambda f: (f[["a", "b", "p"]] >= 0).all(axis=1),
    "all inputs": lambda f: (f[["a", "b"]] >= 0).all(axis=1),
    "isin": lambda f: f.id.isin([1, 2, 900]),
    "mean": lambda f: f.a > f.a.mean(),
    "mean output": lambda f: f.p > f.p.mean(),
    "not": lambda f: ~(f.p > 0),
    "text": lambda f: f.text.str.endswith("7"),
    "renamed": lambda f: f.rename(columns={"p": "q"}).q > 0,
    "assigned": lambda f: f.assign(z=f.p * 2).z > 0.5,
    "between": lambda f: f.p.between(-1, 1),
    "astype": lambda f: f.p.astype("int64") == 0,
    "isna": lambda f: f.p.notnull() & (f.id > 3),
}


@pytest.mark.parametrize("name", PREDICATES)
@pytest.mark.parametrize("columns", [None, ["p"], ["id", "p"], ["id"]])
def test_filters_match_pandas(pred, expected, name, columns):
    result = pred[PREDICATES[name](pred)]
    wanted = expected[PREDICATES[name](expected)]
    if columns is not None:
        result, wanted = result[columns], wanted[columns]
    assert_eq(
        result.compute().reset_index(drop=True),
        wanted.reset_index(drop=True),
        check_dtype=False,
    )


@pytest.mark.parametrize("columns", [["p"], ["id", "p"], ["b", "p"], None])
@pytest.mark.parametrize("name", ["output", "mixed", "either", "isna", "between"])
def test_a_filter_on_outputs_runs_the_model_once(ddf, rows_run, name, columns):
    few = ddf[ddf.id < 700]
    pred = few.infer.predict(Counting(rows_run.log), columns=["a", "b"], output="p")
    result = pred[PREDICATES[name](pred)]
    (result if columns is None else result[columns]).compute()
    assert rows_run() == 700  # and none of those that the filter before left out


READERS = {
    "loc": lambda f: f.loc[f.p > 0, ["id", "p"]].compute(),
    "assign": lambda f: f.assign(high=f.p > 0)[["id", "high", "p"]].compute(),
    "reset": lambda f: f.reset_index().query("p > 0")[["id", "p"]].compute(),
    "several": lambda f: dask.compute(f[["id", "p"]], f.p.mean()),
    "groups": lambda f: dask.compute(f.p.mean(), f.groupby("text").p.sum()),
    "persisted": lambda f: dask.persist(f, f.p.mean()),
    "standard": lambda f: ((f.p - f.p.mean()) / f.p.std()).compute(),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_of_different_columns_share_one_prediction(pred, rows_run, name):
    READERS[name](pred)
    assert rows_run() == ROWS


def test_two_filters_of_one_prediction(pred, expected):
    low, high = pred[pred.id < 100], pred[pred.id >= 900]
    both = dd.concat([low, high]).compute()
    assert sorted(both.id) == [*range(100), *range(900, 1000)]


def test_rows_that_influence_each_other_stay_together(ddf, rows_run):
    pred = ddf.infer.predict(
        Counting(rows_run.log), columns=["a", "b"], output="p", row_wise=False
    )
    assert len(pred) == ROWS
    assert rows_run() == 0
    pred.head(3)
    assert rows_run() == ROWS // 4
    pred[pred.id < 10].compute()
    assert rows_run() == ROWS // 4 + ROWS
    assert read_columns(pred["p"]) == {"a", "b"}


def test_tree_is_readable(pred, capsys):
    pred.expr.pprint()
    assert "<Counting: a, b -> p>" in capsys.readouterr().out
    assert "Counting" in repr(pred.expr)


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_local_schedulers(pred, expected, scheduler):
    result = pred.compute(scheduler=scheduler)
    assert result["p"].to_list() == pytest.approx(expected["p"].to_list())
