"""``parallel="auto"`` on clusters and without: what it takes, and equal rows."""

from __future__ import annotations

import contextlib
import re
import time

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client

import dask_infer
from dask_infer import Layout, PlacementError, Towers
from dask_infer.client import call_group
from dask_infer.client.job_builder import build_job
from dask_infer.client.request import Request
from dask_infer.replica.measured import rate_key, rows_key
from dask_infer.replica.remembered import recall, remember

from .conftest import groups, held, near, workers

#: Fewer bytes than those of `model`, which the workers of a cluster have from here.
LIMIT = {"infer.replica.memory-limit": "4 KiB"}


@pytest.fixture(autouse=True)
def cuts_small_models(monkeypatch):
    monkeypatch.setattr(call_group, "SMALL", 0)


def reasons(client):
    events = [event for _, event in client.get_events("infer-groups")]
    return [event["event"] for event in events if 'parallel="auto"' in event["event"]]


def test_data_where_the_model_is_small(client, ddf, pdf, model, expected):
    pred = ddf.infer.predict(model, parallel="auto")
    near(pred.compute(), expected, pdf)
    assert not held(client)
    assert "takes data: " in reasons(client)[-1] and "\n" not in reasons(client)[-1]


@pytest.fixture(scope="module")
def small_workers(store):
    """Four workers whose models may take 4 KiB; the model of `model` has 4.6."""
    with contextlib.ExitStack() as stack:
        with dask.config.set(LIMIT):
            cluster = stack.enter_context(workers(*[{"A": 1}] * 4))
        yield stack.enter_context(Client(cluster))


def test_a_sweep_where_no_worker_holds_the_model(
    small_workers, ddf, pdf, model, expected
):
    pred = ddf.infer.predict(model, parallel="auto")
    near(pred.compute(), expected, pdf)
    assert "takes sweep: " in reasons(small_workers)[-1]
    assert "data refused (needs " in reasons(small_workers)[-1]
    with dask.config.set(LIMIT):
        plan = ddf.infer.explain(model)
    assert plan.layout == Layout(sweep=True)
    near(ddf.infer.predict(model, parallel=plan.layout).compute(), expected, pdf)
    dask_infer.unload()


def test_stages_where_no_worker_with_the_resource_holds_the_model(
    small_workers, ddf, pdf, model, expected
):
    pred = ddf.infer.predict(model, parallel="auto", resources={"A": 1})
    near(pred.compute(), expected, pdf)
    assert "takes stages=" in reasons(small_workers)[-1]
    assert set(dask_infer.replicas().stage) >= {0, 1}
    dask_infer.unload()


class Shift(torch.nn.Module):
    """Adds what no shards divide."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(32, 8) / 10)

    def forward(self, x):
        return x + self.table.sum(0)


class Branches(torch.nn.Module):
    """Cannot be cut, for which way it takes is not known before it runs."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(512, 4)

    def forward(self, x):
        return self.layer(x).sum(1) if x.sum() > -1e9 else x[:, 0]


WIDE = {
    "shards=2": (lambda: torch.nn.Sequential(torch.nn.Linear(512, 2)), 512),
    "stages=2, shards=2": (
        lambda: torch.nn.Sequential(
            torch.nn.Linear(128, 8), Shift(), Shift(), Shift(), torch.nn.Linear(8, 8)
        ),
        128,
    ),
    "shards=4": (Branches, 512),
}


@pytest.mark.parametrize("taken", WIDE)
def test_shards_where_a_layer_fits_no_worker(small_workers, taken):
    torch.manual_seed(3)
    build, width = WIDE[taken]
    model = build()
    values = np.random.default_rng(0).normal(size=(40, width)).astype("float32")
    columns = [f"x{i}" for i in range(width)]
    wide = dd.from_pandas(pd.DataFrame(values, columns=columns), npartitions=2)
    meta = "float32" if isinstance(model, Branches) else None
    pred = wide.infer.predict(model, parallel="auto", keep=False, meta=meta)
    with torch.inference_mode():
        expected = model(torch.tensor(values)).numpy()
    result = pred.compute()["prediction"].infer.to_numpy()
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert f"takes {taken}: " in reasons(small_workers)[-1]
    assert dask_infer.replicas().shard.nunique() == int(taken[-1])
    dask_infer.unload()


def test_resources_that_no_worker_has_are_named(small_workers, ddf, model):
    options = {"columns": ["a", "b"], "resources": {"FPGA": 1}}
    missing = r"no worker with resources=\{'FPGA': 1.0\} is left for it"
    assert re.search(missing, repr(ddf.infer.explain(model, **options)))
    with pytest.raises(PlacementError, match=missing):
        ddf.infer.predict(model, parallel="auto", **options).compute()


def test_every_row_fails_where_nothing_fits(small_workers, ddf):
    model = torch.nn.Sequential(torch.nn.Linear(2, 4096), torch.nn.Linear(4096, 1))
    pred = ddf.infer.predict(model, parallel="auto")
    with pytest.raises(PlacementError, match=r"no layout: data: needs \d+\.0 KiB on"):
        pred.compute()


def test_what_is_not_known_yet_is_no_part_of_any_key(ddf, model):
    one, two = (ddf.infer.predict(model, parallel="auto") for _ in range(2))
    assert one._name == two._name
    keys = [set(pred.optimize().__dask_graph__()) for pred in (one, two)]
    assert keys[0] == keys[1]
    assert one._name != ddf.infer.predict(model)._name


def many_rows(pdf):
    """As many rows as there are, which no metadata tells."""
    parts = [pdf.iloc[start : start + 31] for start in range(0, len(pdf), 31)]
    return dd.from_map(lambda part: part, parts, meta=pdf.iloc[:0])


def test_a_mixed_cluster_feeds_its_accelerators(client, pdf):
    # Large enough that CPU workers would be slow at it, by its size.
    sizes = [2, 1200, 1200, 1200, 1]
    model = torch.nn.Sequential(*map(torch.nn.Linear, sizes[:-1], sizes[1:]))
    with torch.inference_mode():
        expected = model(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()
    pred = many_rows(pdf).infer.predict(model, parallel="auto")
    near(pred.compute(), expected, pdf)
    assert "takes replicas: " in reasons(client)[-1]
    (group,) = groups(client)
    having = {
        address
        for address, info in client.scheduler_info(n_workers=-1)["workers"].items()
        if info["resources"].get("GPU")
    }
    routes = {address for each in group["instances"] for address in each["route"]}
    assert routes <= having


def test_a_plan_names_the_resource_that_goes_with_it(client, pdf):
    sizes = [2, 1200, 1200, 1200, 1]
    model = torch.nn.Sequential(*map(torch.nn.Linear, sizes[:-1], sizes[1:]))
    plan = many_rows(pdf).infer.explain(model)
    assert (plan.layout, plan.resources) == (Layout(), {"GPU": 1.0})
    assert "speed of 2 accelerators" in repr(plan)


def test_resources_are_kept(client, ddf, pdf, model, expected):
    pred = ddf.infer.predict(model, parallel="auto", resources={"GPU": 1})
    near(pred.compute(), expected, pdf)
    assert held(client)
    plan = ddf.infer.explain(model, resources={"GPU": 1})
    again = ddf.infer.predict(model, parallel=plan.layout, resources=plan.resources)
    near(again.compute(), expected, pdf)


def test_rows_that_fail_are_missing_under_auto_too(client, ddf, pdf, model):
    def breaks(frame):
        if (frame.index == 33).any():
            raise ValueError("no such row")
        return frame

    pred = ddf.infer.predict(
        model, parallel="auto", preprocess=breaks, on_error="null", meta="float32"
    )
    missing = pred.compute()["prediction"].isna()
    assert missing[missing].index.tolist() == [33]


def test_a_sweep_without_a_cluster(ddf, pdf, model, expected, caplog):
    caplog.set_level("INFO", "dask_infer.pipeline.choice")
    pred = ddf.infer.predict(model, parallel="auto")
    with dask.config.set(LIMIT):
        near(pred.compute(scheduler="threads"), expected, pdf)
    assert 'parallel="auto" takes sweep: ' in caplog.text


@pytest.mark.parametrize(
    "scheduler",
    ["sync", "threads", pytest.param("processes", marks=pytest.mark.slow)],
)
def test_every_scheduler(scheduler, ddf, pdf, model, expected):
    pred = ddf.infer.predict(model, parallel="auto")
    near(pred.compute(scheduler=scheduler), expected, pdf)


def test_models_that_cannot_be_cut_stay_whole(client, pdf):
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)[:, 0] if x.sum() > -1e9 else x[:, 0]

    ddf = dd.from_pandas(pdf, npartitions=2)
    result = ddf.infer.predict(Odd(), parallel="auto", meta="float32").compute()
    assert isinstance(result, pd.DataFrame) and len(result) == len(pdf)
    refused = ddf.infer.explain(Odd(), meta="float32").table.set_index("layout").refused
    assert refused["sweep"] == refused["stages=auto"] != ""


class Waits(torch.nn.Module):
    """Takes a time for each row."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        if type(x) is torch.Tensor and x.device.type != "meta":
            time.sleep(self.seconds * len(x))
        return x[:, 0].clone()  # a layer that returns a view may be exported


def forward_facts(plan):
    wanted = ("forward of a row", "speed of 2 accelerators")
    return {fact.name: fact.source for fact in plan.facts if fact.name in wanted}


def test_what_workers_with_a_resource_took_is_known_to_the_next_job(client, pdf):
    ddf, model = dd.from_pandas(pdf[:40], npartitions=4), Waits(1e-2)
    gpu = {"resources": {"GPU": 1}}
    assert set(forward_facts(ddf.infer.explain(model)).values()) <= {
        "assumed", "projected",
    }  # fmt: skip
    ddf.infer.predict(model, **gpu).compute()
    plan = ddf.infer.explain(model, **gpu)
    assert forward_facts(plan)["forward of a row"] == "measured"
    (row,) = (
        state["forward"]
        for key in keys_of_call(ddf, model)
        if (state := recall(key)) is not None
    )
    assert row > 1e-3
    ddf.infer.predict(model, device="cpu").compute()
    facts = forward_facts(ddf.infer.explain(model))
    assert facts["speed of 2 accelerators"] == "measured"


def test_what_sweeps_and_shards_took_is_known_to_the_next_job(client, pdf):
    ddf = dd.from_pandas(pdf[:40], npartitions=4)
    torch.manual_seed(13)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), Waits(1e-2))
    options = {"device": "cpu"}
    ddf.infer.predict(model, parallel=Layout(shards=2), **options).compute()
    key, _ = keys_of_call(ddf, model, **options)
    assert recall(f"{key}/2 shards")["forward"] > 1e-3
    plan = ddf.infer.explain(model, **options)
    assert "synthetic rows" in repr(plan)  # of whole forwards none was measured
    shards = plan.table.set_index("layout").run["shards=2"]
    assert shards > 40 * 1e-3
    ddf.infer.predict(model, parallel="sweep", **options).compute()
    assert recall(key)["forward"] > 1e-3
    assert "synthetic rows" not in repr(ddf.infer.explain(model, **options))


def keys_of_call(ddf, model, **options):
    job, _ = build_job(Request(model, **options), ddf.expr)
    return [rows_key(job.rate_key, kind) for kind in ("cpu", "cuda")]


class Sums(torch.nn.Module):
    def forward(self, one, two):
        return one + two


@pytest.fixture
def slow_loads(store):
    """Weights of CPU workers come so slowly that more stages are faster."""
    key = rate_key("cpu")
    before = recall(key)
    remember(key, {"bytes": 1, "seconds": 1.0})  # beside this no forward counts
    yield
    remember(key, before or {"bytes": 0, "seconds": 0.0})


def test_towers_divide_the_workers_that_each_would_have_alone(client, pdf, slow_loads):
    ddf = dd.from_pandas(pdf, npartitions=2)
    torch.manual_seed(12)
    # Nothing is remembered of their own loads.
    one, two = (
        torch.nn.Sequential(*map(torch.nn.Linear, [2, *[n] * 4], [*[n] * 4, 1]))
        for n in (9, 10)
    )
    values = torch.tensor(pdf.to_numpy(copy=True))
    with torch.inference_mode():
        expected = (one(values) + two(values))[:, 0].numpy()
    assert ddf.infer.explain(one, device="cpu").layout == Layout(stages=4)
    own = (["a", "b"], {"device": "cpu"})
    towers = Towers({"one": (one, *own), "two": (two, *own)}, Sums())
    plan = ddf.infer.explain(towers)
    assert plan.table[plan.table.chosen].workers.tolist() == [2, 2]
    near(ddf.infer.predict(towers, parallel="auto").compute(), expected, pdf)
    taken = [line.partition("takes ")[2] for line in reasons(client)[-2:]]
    assert {line.partition(":")[0][-2:] for line in taken} == {"=2"}, taken


def test_a_tower_alone_is_chosen_for(client, ddf, pdf, model, expected):
    own = {"parallel": "auto", "resources": {"GPU": 1}}
    towers = Towers({"one": (model, ["a", "b"], own), "two": (model, ["b", "a"])})
    result = ddf.infer.predict(towers, keep=False).compute()
    np.testing.assert_allclose(result["one"], expected, atol=1e-5)
    assert "takes replicas: " in reasons(client)[-1]
    assert {row.device for row in dask_infer.replicas().itertuples()} == {"cpu"}
    (group,) = groups(client)
    assert len(group["instances"]) >= 1


def test_a_tower_for_which_no_worker_is_left_is_named(client, ddf):
    own = {"parallel": "auto", "resources": {"GPU": 1}}
    models = {name: torch.nn.Linear(2, 1) for name in ("one", "two", "three")}
    towers = Towers({name: (each, ["a", "b"], own) for name, each in models.items()})
    missing = r"no worker with resources=\{'GPU': 1.0\} is left for it"
    with pytest.raises(PlacementError, match=missing):
        ddf.infer.predict(towers, keep=False).compute()


def test_workers_of_a_tower_with_a_set_layout_are_not_counted_on(client, ddf):
    gpu = {"resources": {"GPU": 1}}
    models = {name: torch.nn.Linear(2, 1) for name in ("set", "chosen")}
    for replicas, left in ((1, [1]), (2, [])):
        own = [{**gpu, "parallel": Layout(replicas=replicas)}, gpu]
        towers = Towers(
            {
                name: (model, ["a", "b"], options)
                for (name, model), options in zip(models.items(), own, strict=True)
            }
        )
        table = ddf.infer.explain(towers).table
        assert table[table.chosen].workers.tolist() == left
        assert (table.tower == "chosen").all()
    missing = r"no worker with resources=\{'GPU': 1.0\} is left for it"
    with pytest.raises(PlacementError, match=missing):
        ddf.infer.predict(towers, parallel="auto", keep=False).compute()


def test_a_tower_that_fits_nowhere_is_named(small_workers, ddf):
    wide = torch.nn.Sequential(torch.nn.Linear(2, 4096), torch.nn.Linear(4096, 1))
    towers = Towers({"one": (torch.nn.Linear(2, 1), None), "two": (wide, None)})
    with pytest.raises(PlacementError, match='model "Sequential" fits in no layout'):
        ddf.infer.predict(towers, parallel="auto", keep=False).compute()
