"""What a second equal call does not do again."""

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch

import dask_infer
from dask_infer.client import tracing
from dask_infer.model import split
from dask_infer.model.store import blob_store as store


@pytest.fixture
def ddf():
    rows = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    return dd.from_pandas(pd.DataFrame(rows, columns=list("abc")), npartitions=2)


@pytest.fixture
def counted(monkeypatch):
    """How often a call propagates shapes, splits, and tries a pickle."""
    counts = dict.fromkeys(("propagate", "split", "dry_run"), 0)

    def count(owner, name):
        function = getattr(owner, name)

        def counting(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    count(tracing, "propagate"), count(split, "split"), count(store.pickling, "dry_run")
    return counts


def model(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
    )


LAYOUTS = ["data", dask_infer.Layout(stages=2)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=["data", "stages"])
def test_a_second_equal_call_looks_at_nothing_again(ddf, counted, layout):
    seed = 100 if layout == "data" else 101
    first = ddf.infer.predict(model(seed), parallel=layout)
    assert counted["propagate" if layout == "data" else "split"] == 1
    before = dict(counted)
    second = ddf.infer.predict(model(seed), parallel=layout)
    assert counted == before
    assert first._name == second._name


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight.data.mul_(2),
        lambda m: m[0].weight.detach().numpy().__imul__(2),
        lambda m: m[0].weight.data.neg_(),
        lambda m: setattr(m[0].weight, "data", m[0].weight.data * 2),
    ],
    ids=["data", "numpy view", "signs", "swapped"],
)
def test_weights_changed_in_place_are_seen(ddf, change):
    one = model(102)
    pred = ddf.infer.predict(one, columns=["a", "b", "c"], keep=False)
    change(one)
    again = ddf.infer.predict(one, columns=["a", "b", "c"], keep=False)
    with torch.inference_mode():
        expected = one(torch.tensor(ddf.compute().to_numpy(copy=True)))[:, 0].numpy()
    assert again._name != pred._name
    got = again.compute(scheduler="sync")["prediction"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_other_cuts_and_arguments_are_other_chains(ddf, counted):
    for layout in (["0", "2"], ["1"]):
        ddf.infer.predict(model(104), parallel=dask_infer.Layout(stages=layout))
    ddf.infer.predict(
        model(104), parallel=dask_infer.Layout(stages=2), dtype="bfloat16"
    )
    assert counted["split"] == 3


def test_a_function_sees_the_mode_of_its_module(ddf):
    """A function runs as it is: no module in it is put into ``eval()``."""
    for training in (True, False):
        norm = torch.nn.BatchNorm1d(3).train(training)

        def normalized(x, norm=norm):
            with torch.no_grad():
                return norm(torch.as_tensor(x))[:, 0].numpy()

        pred = ddf.infer.predict(normalized, columns=list("abc"), meta="float32")
        got = pred.partitions[0].compute(scheduler="sync")["prediction"]
        rows = ddf.partitions[0].compute().to_numpy(copy=True)
        np.testing.assert_allclose(got, normalized(rows), rtol=1e-5)


@pytest.mark.parametrize("scheduler", ["sync", "distributed"])
def test_a_class_that_changed_leaves_earlier_models_as_they_are(ddf, client, scheduler):
    """cloudpickle gives a class that a process has the code of the last pickle read."""

    class Scaled(torch.nn.Module):
        factor = 2.0

        def forward(self, x):
            return torch.ones(len(x)) * self.factor

    first = ddf.infer.predict(Scaled())["prediction"]
    assert set(first.compute(scheduler=scheduler)) == {2}
    forward, Scaled.factor = Scaled.forward, 3.0
    second = ddf.infer.predict(Scaled())["prediction"]
    assert set(second.compute(scheduler=scheduler)) == {3}
    assert set(first.compute(scheduler=scheduler)) == {2}
    assert Scaled.factor == 3 and Scaled.forward is forward  # the user's class


class Score:
    def __init__(self, value):
        self.value = value


def scores(rows):
    return [Score(float(value)) for value in rows[:, 0]]


@pytest.mark.parametrize("scheduler", ["sync", None])
def test_objects_of_the_users_classes_come_back_as_such(
    ddf, client, scheduler, monkeypatch
):
    for value in (Score, scores):  # as in a notebook: by value
        monkeypatch.setattr(value, "__module__", "__main__")
    pred = ddf.infer.predict(scores, meta=object, keep=False)
    result = pred.compute(scheduler=scheduler)["prediction"]
    assert [type(value) for value in result] == [Score] * 12


def a_class_of_equal_code():
    class Marker(torch.nn.Module):
        pass

    return Marker


@pytest.mark.parametrize("scheduler", ["sync", None])
def test_classes_of_equal_code_stay_different_ones(ddf, client, scheduler):
    first, second = a_class_of_equal_code(), a_class_of_equal_code()

    class OnlyFirst(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([first(), second(), first()])

        def forward(self, x):
            return x[:, 0] * 0 + sum(isinstance(one, first) for one in self.layers)

    pred = ddf.infer.predict(OnlyFirst())["prediction"]
    assert set(pred.compute(scheduler=scheduler)) == {2}
