"""Towers that are swept, or whose weights workers share, beside others on a cluster."""

from __future__ import annotations

import os
import signal

import dask.dataframe as dd
import numpy as np
import pytest
import torch

import dask_infer
from dask_infer import Ensemble, Layout, PartitionError, Towers

from .conftest import groups, held

SWEEP = {"parallel": "sweep"}
SHARDS = {"parallel": Layout(shards=2, replicas=1)}
STAGES = {"parallel": Layout(stages=2, replicas=1)}
EACH = pytest.mark.parametrize(
    "options",
    [
        pytest.param(SWEEP, id="sweep", marks=pytest.mark.slow),
        pytest.param(SHARDS, id="shards"),
    ],
)
READ = ["a", "b"]


def layers(seed):
    """Three layers to divide, each model of other weights."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(2, 8), torch.nn.Tanh(),
        torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1),
    )  # fmt: skip


class Meets(torch.nn.Module):
    """Acts on the values of real batches, and passes them on."""

    def forward(self, x):
        if type(x) is torch.Tensor:  # and no fake one, as shapes are found with
            self.act(x)
        return x * 1


class Fails(Meets):
    def act(self, x):
        if bool((x.abs() > 1e3).any()):
            raise RuntimeError("a value is beyond the sensor's range")


class Kills(Meets):
    """Kills its process at the n-th forward of many rows, once."""

    def __init__(self, log, at):
        super().__init__()
        self.log, self.at = str(log), at

    def act(self, x):
        if len(x) != 13:  # as it is timed
            return
        with open(self.log, "a") as file:
            file.write("x")
        if os.path.getsize(self.log) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def with_part(part, seed=3):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(2, 8), part, torch.nn.Linear(8, 8), torch.nn.Tanh(),
        torch.nn.Linear(8, 1),
    )  # fmt: skip


def by_hand(model, pdf):
    with torch.inference_mode():
        return model(torch.tensor(pdf[READ].to_numpy(copy=True)))[:, 0].numpy()


def near(result, pdf, **columns):
    assert result.index.equals(pdf.index)
    for name, wanted in columns.items():
        np.testing.assert_allclose(result[name], wanted, atol=1e-5)


class Weighted(torch.nn.Module):
    """Shows each tower in digits of its own, and the order of its rows."""

    def forward(self, swept, shared, staged):
        return swept + 10 * shared + 100 * staged


def test_towers_of_every_layout_meet_in_a_head(client, ddf, pdf):
    swept, shared, staged = map(layers, range(3))
    towers = Towers(
        {
            "swept": (swept, READ, SWEEP),
            "shared": (shared, READ, SHARDS),
            "staged": (staged, READ, STAGES),
        },
        head=Weighted(),
    )
    found = ddf.infer.predict(towers, keep=False).compute()
    wanted = [by_hand(each, pdf) for each in (swept, shared, staged)]
    np.testing.assert_allclose(
        found["prediction"], np.dot([1, 10, 100], wanted), atol=1e-4
    )
    assert found.index.equals(pdf.index)
    assert sorted(dask_infer.replicas()["shard"].dropna()) == [0, 1]
    assert len(groups(client)) == 2  # a sweep holds no workers


def test_a_swept_tower_beside_one_in_this_process(client, ddf, pdf):
    swept, plain = layers(1), layers(2)
    towers = Towers({"swept": (swept, READ, SWEEP), "plain": (plain, READ)})
    found = ddf.infer.predict(towers).compute()
    near(found, pdf, swept=by_hand(swept, pdf), plain=by_hand(plain, pdf))
    assert not held(client)


@EACH
def test_the_models_of_an_ensemble_have_its_layout(client, ddf, pdf, options):
    models = [layers(seed) for seed in range(2)]
    pred = ddf.infer.predict(Ensemble(models), columns=READ, keep=False, **options)
    mean = np.mean([by_hand(each, pdf) for each in models], 0)
    near(pred.compute(), pdf, prediction=mean)


@pytest.mark.slow
def test_three_swept_towers_of_one_job(client, pdf):
    # Each partition passes one sweep after the other; none waits for another's.
    models = {name: layers(seed) for seed, name in enumerate("xyz")}
    ddf = dd.from_pandas(pdf, npartitions=7)
    towers = Towers({name: (m, READ, SWEEP) for name, m in models.items()})
    found = ddf.infer.predict(towers).compute()
    near(found, pdf, **{name: by_hand(m, pdf) for name, m in models.items()})


@EACH
def test_rows_that_fail_are_missing_in_the_head(client, pdf, options):
    pdf = pdf.copy()
    pdf.iloc[66, 0] = 1e6
    fails, good = with_part(Fails()), layers(4)
    towers = Towers(
        {
            "x": (fails, READ, options | {"batch_size": 16}),
            "y": (good, READ, STAGES),
        },
        head=(lambda x, y: x + 10 * y, None, {"meta": "float32"}),
    )
    ddf = dd.from_pandas(pdf, npartitions=5)
    pred = ddf.infer.predict(towers, on_error="quarantine", keep=False)
    found = pred.compute()
    (row,) = np.flatnonzero(found["prediction"].isna())
    assert row == 66
    error = found["infer_error"].iloc[66]
    assert error.startswith('tower "x": forward: ') and "sensor's range" in error
    rest = pdf.drop(pdf.index[66])
    wanted = by_hand(layers(4), rest) * 10 + by_hand(with_part(Fails()), rest)
    near(found.drop(found.index[66]), rest, prediction=wanted)


@EACH
def test_an_error_names_the_tower(client, pdf, options):
    pdf = pdf.copy()
    pdf.iloc[66, 0] = 1e6
    towers = Towers(
        {"x": (with_part(Fails()), READ, options), "y": (layers(4), READ, STAGES)}
    )
    ddf = dd.from_pandas(pdf, npartitions=5)
    with pytest.raises(PartitionError, match=r'^tower "x": .*sensor') as error:
        ddf.infer.predict(towers).compute()
    assert isinstance(error.value.cause, RuntimeError)


@pytest.mark.slow
@EACH
def test_a_worker_of_a_tower_is_killed(client, ddf, pdf, log, options):
    kills = with_part(Kills(log, 5))
    towers = Towers(
        {
            "x": (kills, READ, options | {"batch_size": 13}),
            "y": (layers(4), READ, STAGES),
        }
    )
    found = ddf.infer.predict(towers).compute()
    near(found, pdf, y=by_hand(layers(4), pdf))
    near(found, pdf, x=by_hand(with_part(torch.nn.Identity()), pdf))
    assert os.path.getsize(log) > 5  # the one that killed was run again


def test_frames_with_empty_partitions(client, ddf, pdf):
    swept, shared = layers(1), layers(2)
    towers = Towers({"x": (swept, READ, SWEEP), "y": (shared, READ, SHARDS)})
    filtered = ddf[ddf["a"] > 1.5].map_partitions(lambda part: part)
    rows = pdf[pdf["a"] > 1.5]
    found = filtered.infer.predict(towers).compute()
    near(found, rows, x=by_hand(swept, rows), y=by_hand(shared, rows))


@pytest.mark.slow
def test_a_swept_tower_that_nobody_reads_does_not_run(client, ddf, pdf):
    torch.manual_seed(1)
    towers = Towers(
        {"x": (with_part(Fails()), READ, SWEEP), "y": (layers(2), READ, SHARDS)}
    )
    pred = ddf.assign(a=ddf["a"] * 1).infer.predict(towers)
    near(pred[["y"]].compute(), pdf, y=by_hand(layers(2), pdf))
    assert "x" not in {job.model for job in dask_infer.why().jobs}
