"""Workers that die under a pipeline: the result is the undisturbed one."""

import os
import signal
import time

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client

import dask_infer
from dask_infer import Layout, PlacementError

from .conftest import groups, near, wait_until, workers

MICROBATCHES, MICROBATCH = 26, 13


class Kills(torch.nn.Module):
    """Counts its forwards in a file; the n-th of all kills its process, once."""

    def __init__(self, log, at):
        super().__init__()
        self.log, self.at = str(log), at

    def forward(self, x):
        real = type(x) is torch.Tensor  # and no fake one, as shapes are found with
        if real and len(x) == MICROBATCH:  # and none that its layers are timed with
            count(self.log, self.at)
        return x * 1


def count(log, at):
    if not os.path.exists(log + ".armed"):
        return
    with open(log, "a") as file:
        file.write("x")
    if os.path.getsize(log) == at:
        os.kill(os.getpid(), signal.SIGKILL)


def stages_with(part):
    """Three stages, of which one holds `part`, which counts."""
    torch.manual_seed(3)
    layers = [torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)]
    where = {0: 1, 1: 2, 2: 3}
    return lambda stage: torch.nn.Sequential(
        *layers[: where[stage]], part, *layers[where[stage] :]
    )


@pytest.fixture
def small(pdf):
    """26 microbatches of 13 rows in 13 partitions."""
    return pdf.iloc[: 13 * MICROBATCHES]


def by_hand(model, pdf):
    with torch.inference_mode():
        return model(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()


#: Each stage once in the fast tests, at the first, middle or last microbatch.
MOMENTS = [1, MICROBATCHES // 2, MICROBATCHES]
DEATHS = [
    pytest.param(stage, at, marks=[pytest.mark.slow] * (MOMENTS[stage] != at))
    for stage in range(3)
    for at in MOMENTS
]
IN_THE_MIDDLE = [
    pytest.param(at, marks=[pytest.mark.slow] * (at != MOMENTS[1])) for at in MOMENTS
]


@pytest.mark.parametrize(("stage", "at"), DEATHS)
def test_a_stage_is_killed(client, small, log, stage, at):  # PP-10
    model = stages_with(Kills(log, at))(stage)
    ddf = dd.from_pandas(small, npartitions=13, sort=False)
    layout = Layout(stages=["2", "3"], microbatch=MICROBATCH, replicas=1)
    pred = ddf.infer.predict(model, parallel=layout)
    expected = by_hand(model, small)
    log.with_name("log.armed").touch()
    near(pred.compute(), expected, small)
    assert os.path.getsize(log) > MICROBATCHES  # the one that killed was run again


@pytest.mark.parametrize("at", IN_THE_MIDDLE)
def test_a_feeder_is_killed(client, small, log, at):  # PP-10
    layers = stages_with(torch.nn.Tanh())(1)

    def postprocess(output, frame):
        count(str(log), at)
        return output

    ddf = dd.from_pandas(small, npartitions=13, sort=False)
    layout = Layout(stages=["2", "3"], microbatch=13, replicas=1)
    pred = ddf.infer.predict(layers, parallel=layout, postprocess=postprocess)
    log.with_name("log.armed").touch()
    near(pred.compute(), by_hand(layers, small), small)
    assert os.path.getsize(log) >= MICROBATCHES


def test_every_worker_has_a_stage_and_one_dies(store, small, log):  # PP-14
    model = stages_with(Kills(log, 5))(1)
    layout = Layout(stages=["2", "3"], microbatch=MICROBATCH)
    expected = by_hand(model, small)
    log.with_name("log.armed").touch()
    with workers({}, {}, {}) as cluster, Client(cluster):
        ddf = dd.from_pandas(small, npartitions=MICROBATCHES, sort=False)
        near(ddf.infer.predict(model, parallel=layout).compute(), expected, small)
    assert os.path.getsize(log) > MICROBATCHES


async def stays_away():
    """What a nanny does whose worker is not to be restarted."""


def test_without_a_spare_the_stage_and_the_resource_are_named(
    store, small, log
):  # PP-10
    model = stages_with(Kills(log, 5))(1)
    layout = Layout(stages=["2", "3"], microbatch=MICROBATCH)
    log.with_name("log.armed").touch()
    with (
        workers(*[{"GPU": 1}] * 3, {}) as cluster,
        Client(cluster),
        dask.config.set({"infer.placement.grace": "1 s"}),
    ):
        for nanny in cluster.workers.values():
            nanny.instantiate = stays_away
        ddf = dd.from_pandas(small, npartitions=MICROBATCHES, sort=False)
        pred = ddf.infer.predict(model, parallel=layout, resources={"GPU": 1})
        with pytest.raises(PlacementError, match=r"stage 1 .*GPU=1"):
            pred.compute()


def test_a_worker_with_a_stage_is_retired(store, pdf):
    class Slow(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x * 1

    model = stages_with(Slow())(1)
    ddf = dd.from_pandas(pdf, npartitions=40, sort=False)
    layout = Layout(stages=["2", "3"], microbatch=5, replicas=1)
    with workers(*[{}] * 4) as cluster, Client(cluster) as client:
        future = client.compute(ddf.infer.predict(model, parallel=layout))
        wait_until(lambda: dask_infer.replicas().rows.sum() > 10)
        (group,) = groups(client)
        gone = group["instances"][0]["route"][1]
        client.retire_workers([gone])
        near(future.result(), by_hand(model, pdf), pdf)
        (group,) = groups(client)
    assert gone not in group["instances"][0]["route"]
    assert group["instances"][0]["epoch"] >= 1


def test_a_stage_that_hangs_takes_a_fresh_replica(client, pdf, tmp_path):  # BM-22
    mark = str(tmp_path / "hung")

    class Hangs(torch.nn.Module):
        def forward(self, x):
            real = type(x) is torch.Tensor
            if real and bool((x.abs() > 1e3).any()) and not os.path.exists(mark):
                open(mark, "w").close()
                time.sleep(4)
            return x * 1

    model = torch.nn.Sequential(torch.nn.Linear(2, 8), Hangs(), torch.nn.Linear(8, 1))
    bad = pdf.copy()
    bad.iloc[50] = 1e6
    pred = dd.from_pandas(bad, npartitions=6, sort=False).infer.predict(
        model, parallel=Layout(stages=["1", "2"], microbatch=20), timeout="0.8 s",
        on_error="null",
    )  # fmt: skip
    result = pred.compute()
    assert result.index.equals(pdf.index)
    good = result["prediction"].notna().to_numpy()
    np.testing.assert_allclose(
        result["prediction"][good], by_hand(model, bad)[good], rtol=1e-4, atol=1e-3
    )
    assert good.sum() >= len(pdf) - 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_soak_of_random_kills(store):
    """Five minutes, a random worker killed every 20 seconds: exact all the time."""
    random = np.random.default_rng(0)
    pdf = pd.DataFrame(random.normal(size=(4000, 2)).astype("f4"), columns=["a", "b"])
    model = stages_with(torch.nn.Tanh())(1)
    expected = by_hand(model, pdf)
    layout = Layout(stages=["2", "3"], microbatch=10)
    with (
        workers({}, {}, {}, {}, {}) as cluster,
        Client(cluster) as client,
        dask.config.set({"infer.placement.grace": "30 s"}),
    ):
        client.run_on_scheduler(_forgive)
        end, rounds = time.monotonic() + 300, 0
        while time.monotonic() < end:
            ddf = dd.from_pandas(pdf, npartitions=60, sort=False)
            shifted = ddf.assign(round=rounds)
            pred = shifted.infer.predict(model, columns=["a", "b"], parallel=layout)
            future = client.compute(pred)
            killed = time.monotonic()
            while not future.done():
                if time.monotonic() - killed > 20:
                    killed = time.monotonic()
                    pids = client.run(os.getpid)
                    os.kill(random.choice(list(pids.values())), signal.SIGKILL)
                time.sleep(0.1)
            near(future.result(), expected, pdf)
            rounds += 1
        assert rounds


def _forgive(dask_scheduler):
    dask_scheduler.allowed_failures = 100


def _import():
    import dask_infer.model.split  # noqa: F401


def test_a_stage_whose_worker_is_frozen_is_placed_anew(store, pdf):
    class Slow(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.02)
            return x * 1

    model = stages_with(Slow())(1)
    ddf = dd.from_pandas(pdf, npartitions=40, sort=False)
    layout = Layout(stages=["2", "3"], microbatch=5, replicas=1)
    with (
        workers(*[{"STAGE": 1}] * 4, {}) as cluster,
        Client(cluster) as client,
        dask.config.set({"infer.stage.stall-timeout": "8 s"}),
    ):
        client.run(_import)  # on a busy machine it alone may take the timeout
        # Feeders elsewhere: partitions of a frozen worker wait for worker-ttl.
        pred = ddf.infer.predict(model, parallel=layout, resources={"STAGE": 1})
        plain = [
            w
            for w, s in client.scheduler_info()["workers"].items()
            if not s["resources"]
        ]
        future = client.compute(pred, workers=plain, allow_other_workers=True)
        wait_until(lambda: dask_infer.replicas().rows.sum() > 10)
        (group,) = groups(client)
        frozen = group["instances"][0]["route"][1]
        pid = client.run(os.getpid, workers=[frozen])[frozen]
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: groups(client)[0]["instances"][0]["epoch"] >= 1, 60)
            wait_until(lambda: groups(client)[0]["instances"][0]["ready"])
        finally:
            os.kill(pid, signal.SIGCONT)
        near(future.result(), by_hand(model, pdf), pdf)
        assert frozen not in groups(client)[0]["instances"][0]["route"]
