"""Towers on workers of their own: exact under losses, errors, cancels, other jobs."""

from __future__ import annotations

import os
import signal
import threading
import time

import dask
import dask.dataframe as dd
import numpy as np
import pytest
import torch
from distributed import Client

import dask_infer
from dask_infer import Ensemble, Layout, PartitionError, PlacementError, Towers

from .conftest import groups, held, wait_until, workers

GPU = {"resources": {"GPU": 1}}
ONE = {"parallel": Layout(replicas=1)}


class Kills:
    """Doubles; counts its forwards in a file, and the n-th of all kills its process."""

    def __init__(self, log=None, at=0, seconds=0.0):
        self.log, self.at, self.seconds = log and str(log), at, seconds

    def __call__(self, x):
        time.sleep(self.seconds)
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write("x")
            if os.path.getsize(self.log) == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
        return np.asarray(x) * 2


def forwards(log):
    return os.path.getsize(log) if os.path.exists(log) else 0


@pytest.fixture
def model():
    """Two layers, so that there is a place to cut."""
    torch.manual_seed(2)
    layers = torch.nn.Linear(2, 4), torch.nn.Linear(4, 1)
    return torch.nn.Sequential(*layers)


def by_hand(model, pdf):
    with torch.inference_mode():
        return model(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()


def near(result, pdf, **columns):
    assert result.index.equals(pdf.index)
    for name, wanted in columns.items():
        np.testing.assert_allclose(result[name], wanted, atol=1e-5)


def total(whole, staged, plain):
    return whole + 10 * staged + 100 * plain


def test_each_tower_is_where_it_is_asked_to_be(client, ddf, pdf, model):
    towers = Towers(
        {
            "whole": (model, ["a", "b"], GPU | ONE),
            "staged": (model, ["a", "b"], {"parallel": Layout(stages=2, replicas=1)}),
            "plain": (Kills(), "a", {"meta": "float32"}),
        },
        head=(total, None, {"meta": "float32"}),
    )
    output = by_hand(model, pdf)
    near(
        ddf.infer.predict(towers, keep=False).compute(),
        pdf,
        prediction=11 * output + 200 * pdf.a,
    )
    table = dask_infer.replicas()
    held = table[table["model"] == "Sequential"]["stage"]
    assert sorted(held.fillna(-1)) == [-1, 0, 1]
    assert len(groups(client)) == 2


def test_members_of_an_ensemble_live_on_workers_of_their_own(client, ddf, pdf):
    models = [torch.nn.Linear(2, 1) for _ in range(2)]
    pred = ddf.infer.predict(Ensemble(models), columns=["a", "b"], **GPU, **ONE)
    mean = np.mean([by_hand(each, pdf) for each in models], 0)
    near(pred.compute(), pdf, prediction=mean)
    assert len(groups(client)) == 2


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(1, marks=pytest.mark.slow),
        7,
        pytest.param(13, marks=pytest.mark.slow),
    ],
)
def test_the_worker_of_a_tower_is_killed(client, ddf, pdf, model, log, at):
    options = {"meta": "float32", **GPU, **ONE}
    towers = Towers(
        {
            "x": (Kills(log, at), "a", options),
            "y": (model, ["a", "b"], {"parallel": Layout(stages=2, replicas=1)}),
        },
        head=(lambda x, y: x + y, None, {"meta": "float32"}),
    )
    found = ddf.infer.predict(towers).compute()
    near(found, pdf, prediction=2 * pdf.a + by_hand(model, pdf))
    assert forwards(log) > 13  # the one that killed was run again


@pytest.mark.slow
def test_the_worker_of_the_partitions_is_killed(client, pdf, model, log):
    # One whose towers are elsewhere and whose own tower kills it.
    ddf = dd.from_pandas(pdf, npartitions=13, sort=False)
    towers = Towers(
        {
            "x": (Kills(log, 5), "a", {"meta": "float32"}),
            "y": (model, ["a", "b"], GPU | ONE),
        }
    )
    found = ddf.infer.predict(towers).compute()
    near(found, pdf, x=2 * pdf.a, y=by_hand(model, pdf))


class Refuses:
    """Raises for one value, after some forwards were slow."""

    def __call__(self, x):
        if (np.asarray(x) == 66).any():
            raise ValueError("66")
        return np.asarray(x)


def test_an_error_elsewhere_names_the_tower_and_ends_the_others(client, pdf, log):
    ddf = dd.from_pandas(pdf.assign(i=np.arange(len(pdf))), npartitions=1)
    options = {"meta": "float32", **GPU, **ONE}
    towers = Towers(
        {
            "slow": (Kills(log, seconds=0.05), "a", options | {"batch_size": 1}),
            "x": (Refuses(), "i", options | {"meta": "int64"}),
        }
    )
    with pytest.raises(PartitionError, match=r'^tower "x": .*ValueError: 66') as error:
        ddf.infer.predict(towers).compute()
    assert isinstance(error.value.cause, ValueError)
    assert forwards(log) < len(pdf)  # it did not go on to the end


def test_rows_that_fail_elsewhere_are_missing_in_the_head(client, pdf):
    ddf = dd.from_pandas(pdf.assign(i=np.arange(len(pdf))), npartitions=5)
    towers = Towers(
        {
            "x": (Refuses(), "i", {"meta": "int64", **GPU, **ONE}),
            "y": (Kills(), "a", {"meta": "float32", **GPU, **ONE}),
        },
        head=(lambda x, y: np.asarray(x) + 1, None, {"meta": "int64"}),
    )
    pred = ddf.infer.predict(towers, on_error="quarantine", keep=False)
    found = pred.compute()
    assert found.dtypes.equals(pred.dtypes)
    (row,) = np.flatnonzero(found["prediction"].isna())
    assert row == 66
    assert found["infer_error"].iloc[66] == 'tower "x": forward: ValueError: 66'
    assert found["prediction"].drop(found.index[66]).tolist() == [
        i + 1 for i in range(len(pdf)) if i != 66
    ]


def test_a_frame_with_empty_partitions(client, ddf, pdf, model):
    towers = Towers(
        {"x": (model, ["a", "b"], GPU | ONE), "y": (torch.nn.ReLU(), "a")},
        head=(lambda x, y: x + y, None, {"meta": "float32"}),
    )
    filtered = ddf[ddf["a"] > 1.5].map_partitions(lambda part: part)
    rows = pdf[pdf["a"] > 1.5]
    near(
        filtered.infer.predict(towers).compute(),
        rows,
        prediction=by_hand(model, rows) + rows.a,
    )


def test_two_jobs_that_need_the_same_workers_take_turns(four, client, pdf):
    # Each needs both workers: had each taken one, both would be refused.
    ddf = dd.from_pandas(pdf, npartitions=3)
    results = [None, None]

    def work(number):
        options = {"meta": "float32", **GPU, **ONE}
        towers = Towers(
            {
                name: (Kills(seconds=0.01 + number / 1e3 + place / 1e4), "a", options)
                for place, name in enumerate("xy")
            }
        )
        with dask.config.set({"infer.placement.grace": "60s"}):
            pred = ddf.infer.predict(towers)
        with Client(four, set_as_default=False) as own:
            results[number] = own.compute(pred).result()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results:
        near(found, pdf, x=2 * pdf.a, y=2 * pdf.a)


def test_towers_with_too_few_workers_are_refused_and_hold_none(client, ddf):
    options = {"meta": "float32", **GPU, **ONE}
    towers = {
        name: (Kills(seconds=n / 1e6), "a", options) for n, name in enumerate("xyz")
    }
    with dask.config.set({"infer.placement.grace": "0.5s"}):
        pred = ddf.infer.predict(Towers(towers))
    with pytest.raises(PlacementError, match=r"has no place for its replica .* GPU=1"):
        pred.compute()
    assert not held(client)


def test_a_job_that_is_cancelled_leaves_nothing(client, ddf, log):
    options = {"meta": "float32", **GPU, **ONE}
    towers = Towers(
        {
            "x": (Kills(log, seconds=0.3), "a", options),
            "y": (Kills(seconds=0.2), "a", options),
        }
    )
    future = client.compute(ddf.infer.predict(towers))
    wait_until(lambda: forwards(log))
    future.cancel()
    dask_infer.unload(towers)
    wait_until(lambda: not held(client))

    def running(dask_worker):
        return [
            t for t in threading.enumerate() if t.name.startswith("dask-infer-tower")
        ]

    wait_until(lambda: not any(client.run(lambda: len(running(None))).values()))


@pytest.mark.slow
def test_free_workers_go_to_the_slower_tower(pdf):
    with workers({"GPU": 1}, {"GPU": 1}, {"GPU": 1}) as cluster, Client(cluster) as own:
        ddf = dd.from_pandas(pdf, npartitions=12)
        options = {"meta": "float32", "batch_size": 5, **GPU}
        towers = Towers(
            {
                "fast": (Kills(seconds=0.02), "a", options),
                "slow": (Kills(seconds=0.08), "a", options),
            }
        )
        pred = ddf.infer.predict(towers)
        near(pred.compute(), pdf, fast=2 * pdf.a, slow=2 * pdf.a)
        # Which one is slow is known after the first rows.
        wait_until(lambda: len(dask_infer.replicas()) == 3 or pred.compute() is None)
        counts = {g["instances"][0]["name"]: len(g["instances"]) for g in groups(own)}
        assert sorted(counts.values()) == [1, 2]
        table = dask_infer.replicas().groupby("model")["rows"]
        assert table.sum().sum() % len(pdf) == 0
        dask_infer.unload()


def test_progress_and_why_have_a_line_a_model(client, ddf, capsys):
    class Image(torch.nn.Linear):
        """A name of its own."""

    class Table(Image):
        pass

    towers = Towers(
        {"i": (Image(2, 3), ["a", "b"], GPU | ONE), "t": (Table(2, 1), ["a", "b"])},
        head=Sum(),
    )
    with dask_infer.progress() as shown:
        ddf.infer.predict(towers).compute()
    lines = repr(shown).splitlines()
    names = [line.partition("] ")[2].partition(":")[0] for line in lines]
    assert names == ["Image", "Table", "Sum"]
    assert all("403 rows" in line for line in lines)
    jobs = {job.model.rpartition("-")[0]: job for job in dask_infer.why().jobs}
    assert jobs.keys() >= {"Image", "Table", "Sum"}
    # While the head waits for the towers nothing is read for it.
    assert jobs["Sum"].shares["idle"] > jobs["Sum"].shares.get("read", 0)


class Sum(torch.nn.Module):
    def forward(self, i, t):
        return i.sum(1) + t


def test_without_a_cluster_a_tower_elsewhere_says_so(pdf):
    ddf = dd.from_pandas(pdf, npartitions=2)
    towers = {"x": (torch.nn.ReLU(), "a", GPU), "y": (torch.nn.ReLU(), "b")}
    pred = ddf.infer.predict(Towers(towers))
    with pytest.raises(PlacementError, match="needs a distributed client"):
        pred.compute(scheduler="threads")
