"""`explain`: what is compared, from what, and that nothing runs."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from distributed import Client, LocalCluster

import dask_infer
from dask_infer import InputError, Layout, PlacementError, Plan
from dask_infer._dask import count_rows_at_most
from dask_infer.client import call_group
from dask_infer.client.explain import row_bytes
from dask_infer.plan import partition_sizes
from tests.conftest import QUIET


class Counts(torch.nn.Module):
    """Fails where its forward is called with data."""

    def __init__(self, layers=4, width=16):
        super().__init__()
        torch.manual_seed(layers)
        self.layers = torch.nn.ModuleList(
            [torch.nn.Linear(2 if i == 0 else width, width) for i in range(layers)]
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


@pytest.fixture
def cuts_small_models(monkeypatch):
    monkeypatch.setattr(call_group, "SMALL", 0)


@pytest.fixture
def numbers(ddf):
    return ddf[["a", "b"]]


def sources(plan):
    return {fact.name: fact.source for fact in plan.facts}


def test_a_plan_without_a_cluster(numbers):
    plan = numbers.infer.explain(Counts(5))
    assert isinstance(plan, Plan)
    assert plan.layout == Layout() and plan.resources is None
    table = plan.table
    assert table.columns[:3].tolist() == ["layout", "replicas", "workers"]
    assert table.loc[table.chosen, "layout"].tolist() == ["data"]
    assert (table.refused != "").sum() == len(table) - 1
    assert table.loc[table.chosen, "total"].item() > 0
    assert table.loc[~table.chosen, "total"].isna().all()


def test_the_text_marks_the_choice_and_the_sources(numbers):
    text = repr(numbers.infer.explain(Counts(6)))
    lines = text.splitlines()
    assert lines[0] == 'model "Counts"'
    assert [line for line in lines if line.startswith("> data")]
    assert "> parallel=Layout()" in lines
    assert "rows up to 100 in 4 partitions" in text
    assert any(line.startswith("assumed: ") for line in lines)


def test_html_says_the_same_and_is_escaped(numbers):
    class Model(Counts):
        pass

    Model.__name__ = Model.__qualname__ = "A<b>"
    html = numbers.infer.explain(Model(4))._repr_html_()
    assert "A<b>" not in html and "A&lt;b&gt;" in html
    assert "&gt; data" in html and "assumed" in html


def test_nothing_is_loaded_or_run(client, numbers, tmp_path):
    log = tmp_path / "log"

    class Writes(Counts):
        def forward(self, x):
            if type(x) is torch.Tensor and x.device.type != "meta":
                log.write_text("ran")
            return super().forward(x)

    before = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    plan = numbers.infer.explain(Writes(4))
    assert plan.layout == Layout()
    assert not log.exists()
    assert not (dask_infer.replicas().model == "Writes").any()
    after = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
    assert before == after


def test_what_a_job_measured_is_known_to_the_next(client, numbers):
    model = Counts(7)
    assert sources(numbers.infer.explain(model))["forward of a row"] == "projected"
    pred = numbers.infer.predict(model)
    pred.compute()
    plan = numbers.infer.explain(model)
    assert sources(plan)["forward of a row"] == "measured"
    assert sources(plan)["reading and encoding a row"] == "measured"
    assert sources(plan)["a worker loads"] == "measured"
    with dask.config.set({"infer.batch.remember": None}):
        client.run(dask.config.set, {"infer.batch.remember": None})
        forgotten = sources(numbers.infer.explain(model))
        client.run(dask.config.set, {"infer.batch.remember": "1 day"})
    assert forgotten["forward of a row"] == "projected"


def test_measured_without_a_cluster_too(numbers):
    model = Counts(8)
    numbers.infer.predict(model).compute(scheduler="sync")
    assert sources(numbers.infer.explain(model))["forward of a row"] == "measured"


def test_stages_are_compared_where_there_are_workers(
    client, numbers, cuts_small_models
):
    plan = numbers.infer.explain(Counts(4))
    found = set(plan.table.layout)
    assert {"data", "sweep", "stages=2", "shards=2"} <= found
    row = plan.table.set_index("layout").loc["stages=2"]
    assert (row.replicas, row.workers) == (1, 2)
    assert row.memory < plan.table.set_index("layout").loc["data"].memory


def test_where_nothing_fits_there_is_no_layout(client, numbers, cuts_small_models):
    with dask.config.set({"infer.replica.memory-limit": "1 B"}):
        plan = numbers.infer.explain(Counts(4))
    assert plan.layout is None and plan.resources is None
    assert not plan.table.chosen.any()
    assert "No layout" in repr(plan)
    assert "on every worker; tcp://" in repr(plan)


class Sums(torch.nn.Module):
    def forward(self, one, two):
        return one + two


@pytest.fixture
def towers():
    pairs = {"one": (Counts(4), ["a", "b"]), "two": (Counts(5), ["b", "a"])}
    return dask_infer.Towers(pairs, head=Sums())


def test_a_plan_of_towers_has_one_of_each(client, numbers, towers):
    plan = numbers.infer.explain(towers)
    assert isinstance(plan, Plan) and list(plan.towers) == ["one", "two"]
    assert plan.towers["two"].layout == Layout() and plan.layout is None
    table = plan.table
    assert table.columns[:2].tolist() == ["tower", "layout"]
    assert table[table.chosen].tower.tolist() == ["one", "two"]
    lines = repr(plan).splitlines()
    assert 'one: model "Counts"' in lines and 'two: model "Counts"' in lines
    assert lines[-2].startswith('> parallel="auto": ')
    assert lines[-1] == "head: in each process that has rows; not compared"
    html = plan._repr_html_()
    assert "Plan of two: Counts" in html and "not compared" in html


def test_towers_with_names_alike_are_all_planned(numbers):
    inner = dask_infer.Towers({"b": (Counts(5), ["a", "b"])})
    towers = {"head": (Counts(4), ["a", "b"]), "a: b": (Counts(6), ["a", "b"])}
    plan = numbers.infer.explain(
        dask_infer.Towers(
            {**towers, "a": inner},
            head=(Counts(2), ["head", "a: b"], {"parallel": "auto"}),
        )
    )
    assert list(plan.towers) == [
        'tower "head"',
        'tower "a: b"',
        'tower "a": tower "b"',
        "head",
    ]


def test_ensembles_and_what_is_nested_without_a_cluster(numbers, towers):
    ensemble = dask_infer.Ensemble([Counts(4), towers])
    plan = numbers.infer.explain(ensemble)
    assert list(plan.towers) == ["member 0", "member 1: one", "member 1: two"]
    assert plan.towers["member 0"].layout == Layout()
    with dask.config.set({"infer.replica.memory-limit": "1 B"}):
        refused = repr(numbers.infer.explain(ensemble))
    assert "No layout fits member 0, member 1: one, member 1: two." in refused


def test_towers_whose_layouts_are_given_are_named(numbers, cuts_small_models):
    fixed = {"parallel": Layout(stages=2), "resources": {"GPU": 1}}
    swept = {"parallel": "sweep"}
    towers = {
        "one": (Counts(4), ["a", "b"], fixed),
        "two": (Counts(5), ["a", "b"], swept),
    }
    plan = numbers.infer.explain(dask_infer.Towers(towers))
    assert plan.towers == {} and plan.table.empty
    assert plan.notes == [
        "one: parallel=Layout(stages=2), resources={'GPU': 1.0}; not compared",
        "two: parallel=Layout(stages='auto', sweep=True); not compared",
    ]
    assert plan.notes[0] in repr(plan)


def test_a_cluster_without_workers_has_nothing_to_plan_for(numbers):
    with (
        LocalCluster(n_workers=0, **QUIET) as cluster,
        Client(cluster),
        pytest.raises(PlacementError, match=r"no worker .* start workers"),
    ):
        numbers.infer.explain(Counts(4))


def test_a_series_is_explained_too(ddf):
    plan = ddf.a.infer.explain(torch.nn.Linear(1, 1), columns=["a"])
    assert plan.layout == Layout()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"columns": ["nothing"]}, InputError),
        ({"on_error": "ignore"}, ValueError),
        ({"parallel": "fast"}, ValueError),
        ({"resources": {}}, ValueError),
        ({"colums": ["a"]}, TypeError),
        ({"columns": ["text"]}, InputError),
    ],
)
def test_bad_arguments_raise_what_predict_raises(ddf, arguments, error):
    with pytest.raises(error):
        ddf.infer.predict(torch.nn.Linear(1, 1), **arguments)
    with pytest.raises(error):
        ddf.infer.explain(torch.nn.Linear(1, 1), **arguments)


def test_the_signature_is_that_of_predict():
    for accessor in (dask_infer.DataFrameInfer, dask_infer.SeriesInfer):
        explained = inspect.signature(accessor.explain).parameters
        assert explained == inspect.signature(accessor.predict).parameters


def dies_when_asked():
    """Replaces, on a worker, what looks up one of its measurements."""
    from dask_infer.replica import measured

    measured.recall = lambda key: os.kill(os.getpid(), signal.SIGKILL)


def test_where_a_worker_is_lost_while_it_is_asked_another_one_is(client, numbers):
    first = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
    client.run(dies_when_asked, workers=[first])
    assert numbers.infer.explain(torch.nn.Linear(2, 1)).layout is not None
    client.wait_for_workers(2, timeout=60)


def test_an_asynchronous_client_gets_an_awaitable(cluster, numbers):
    async def ask():
        async with Client(cluster.scheduler_address, asynchronous=True):
            return await numbers.infer.explain(Counts(4))

    assert asyncio.run(ask()).layout == Layout()


@pytest.mark.parametrize("filesystem", ["fsspec", "arrow"])
def test_rows_are_counted_up_to_the_first_filter(tmp_path, filesystem):
    frame = pd.DataFrame({"x": np.arange(1000), "y": np.arange(1000.0)})
    dd.from_pandas(frame, npartitions=4).to_parquet(tmp_path / "rows")
    rows = dd.read_parquet(tmp_path / "rows", filesystem=filesystem)
    few = dd.read_parquet(
        tmp_path / "rows", filesystem=filesystem, filters=[("x", ">", 800)]
    )
    for each in (rows, rows[rows.x > 3], rows[rows.x > 3].assign(z=1)[["y"]]):
        assert count_rows_at_most(each.expr) == 1000
    # What statistics of the files leave out may be known.
    assert 199 <= count_rows_at_most(few.expr) <= 1000
    assert count_rows_at_most(rows.merge(rows, on="x").expr) is None
    assert count_rows_at_most(rows.explode("x").expr) is None


def test_partitions_of_a_bad_size_are_noted(client, numbers, monkeypatch):
    model = Counts(4)
    assert numbers.infer.explain(model).notes == []
    (note,) = numbers.repartition(npartitions=1).infer.explain(model).notes
    assert "too few: 1 for 2 threads" in note
    monkeypatch.setattr(partition_sizes, "WORTH", 0.0)
    plan = numbers.infer.explain(model)
    (note,) = plan.notes
    assert "too small" in note and "2 workers" in note
    assert note in repr(plan) and "too small" in plan._repr_html_()


@pytest.mark.parametrize(
    ("column", "nbytes"),
    [
        (np.zeros(2, "float32"), 4),
        (pd.array([1, 2], "Int64"), 8),
        (["one", "two"], 0),
        (pd.array([[1.0] * 3] * 2, pd.ArrowDtype(pa.list_(pa.float32(), 3))), 12),
        (pd.array([[1.0], []], pd.ArrowDtype(pa.list_(pa.float32()))), 0),
        (pd.array([True, False], "bool[pyarrow]"), 1),
    ],
)
def test_table_of_bytes_of_a_row(column, nbytes):
    series = pd.Series(column)
    assert row_bytes(series) == nbytes
    assert row_bytes(pd.DataFrame({"a": series, "b": series})) == 2 * nbytes


def test_bytes_of_a_row_of_tensors():
    frame = pd.DataFrame({"x": [1.0, 2.0]}, dtype="float32")
    pred = dd.from_pandas(frame, 1).infer.predict(
        torch.nn.Linear(1, 5), keep=False, output="y"
    )
    assert row_bytes(pred._meta) == 20
