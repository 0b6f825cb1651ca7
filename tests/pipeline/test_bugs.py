"""Groups in situations that once went wrong; each test opens with the cause."""

import os
import time

import dask
import dask.dataframe as dd
import numpy as np
import pytest
import torch

import dask_infer
from dask_infer import Layout, PartitionError, PlacementError
from dask_infer.pipeline.scheduler.group_table import TOPIC
from dask_infer.spec.group_spec import COORDINATOR

from .conftest import groups, held, near, wait_until


class Slow(torch.nn.Module):
    """Hands on its input after a while, as a large layer does."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        if type(x) is torch.Tensor:  # and no fake one, as shapes are found with
            time.sleep(self.seconds)
        return x * 1


def slow(seconds):
    torch.manual_seed(2)
    return torch.nn.Sequential(
        torch.nn.Linear(2, 4), Slow(seconds), torch.nn.Linear(4, 1)
    )


def by_hand(model, pdf):
    with torch.inference_mode():
        return model(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()


def test_a_group_that_is_gone_is_not_asked_for_again_and_again(client, ddf, pdf):
    # Watching a group that was let go was answered at once with a higher version,
    # in a loop; what came of the next group was older and never heard of.
    model = slow(0)

    def lingers(output, frame):
        time.sleep(1.5)
        return output

    layout = Layout(stages=["1", "2"])
    with dask.config.set({"infer.stage.idle-timeout": "0 s"}):
        pred = ddf.infer.predict(model, parallel=layout, postprocess=lingers)
        future = client.compute(pred)
        wait_until(
            lambda: len(dask_infer.replicas()) and dask_infer.replicas().rows.sum()
        )
        future.cancel()
        wait_until(lambda: not groups(client))
        pred = ddf.infer.predict(model, parallel=layout)
        future = client.compute(pred)
        near(future.result(timeout=60), by_hand(model, pdf), pdf)


def test_two_workers_of_a_spare_replica_are_lost_at_once(
    client, ddf, model, expected, pdf
):
    # Both losses were mended, and the second one missed what the first gave up.
    pred = ddf.infer.predict(model, parallel=Layout(stages=2))
    pred.compute()
    assert len(groups(client)[0]["instances"]) == 2

    async def lose(dask_scheduler):
        import asyncio

        from dask_infer.pipeline.scheduler.placer import Placer

        coordinator = dask_scheduler.plugins[COORDINATOR]
        (group,) = coordinator.table
        group.feeders.add("somebody")
        instance = group.instances[-1]
        gone = {dask_scheduler.workers[a] for a in instance.addresses}
        dask_scheduler.running -= gone
        for worker in gone:
            Placer(coordinator.table, group).lose(instance, worker.address)
        await asyncio.sleep(0.3)
        dask_scheduler.running |= gone
        group.feeders.discard("somebody")
        return group.status

    assert client.run_on_scheduler(lose) == "ready"
    near(pred.compute(), expected, pdf)


def test_a_replica_dropped_before_it_is_submitted_is_never_submitted(
    client, ddf, model
):
    # The coordinator's client was still connecting when the replica was given up.
    pred = ddf.infer.predict(model, parallel=Layout(stages=2))
    pred.compute()

    async def drop(dask_scheduler):
        import asyncio

        from dask_infer.pipeline.scheduler.placer import Placer

        coordinator = dask_scheduler.plugins[COORDINATOR]
        (group,) = coordinator.table
        instance = group.instances[-1]
        (address, *_) = instance.addresses
        group.feeders.add("somebody")
        async with coordinator.tasks._connecting:
            Placer(coordinator.table, group).lose(instance, address)
            await asyncio.sleep(0.3)
            coordinator.table.drop(group, instance, "is not wanted")
        await asyncio.sleep(0.3)
        group.feeders.discard("somebody")
        return [k for k in dask_scheduler.tasks if instance.name in str(k)]

    assert client.run_on_scheduler(drop) == []


def test_what_can_never_be_placed_takes_no_ones_place(client, ddf, model):  # PP-13
    # Idle groups gave way to one whose resource no worker has.
    ddf.infer.predict(model, parallel=Layout(stages=2)).compute()
    with dask.config.set({"infer.placement.grace": "0.5 s"}):
        lacking = ddf.infer.predict(model, resources={"TPU": 2})
    with pytest.raises(PlacementError, match="TPU=2"):
        lacking.compute()
    statuses = [group["status"] for group in groups(client)]
    assert "ready" in statuses


def test_a_group_grows_onto_places_that_become_free(client, pdf, tmp_path):
    # Only a new worker made a group grow, and only one that was ready just then.
    def blocks(path):
        while not os.path.exists(path):
            time.sleep(0.05)

    free = tmp_path / "free"
    blocker = client.submit(blocks, str(free), resources={"GPU": 1}, pure=False)
    wait_until(lambda: held(client))
    model = slow(0.02)
    ddf = dd.from_pandas(pdf, npartitions=40)
    pred = ddf.infer.predict(model, resources={"GPU": 1}, batch_size=4)
    future = client.compute(pred)
    wait_until(lambda: len(groups(client)) and groups(client)[0]["status"] == "ready")
    assert len(groups(client)[0]["instances"]) == 1
    free.touch()
    blocker.result()
    wait_until(lambda: len(groups(client)[0]["instances"]) == 2 or future.done())
    assert len(groups(client)[0]["instances"]) == 2
    near(future.result(), by_hand(model, pdf), pdf)


class LoadsOnce:
    """Loads in the first process that tries, and in no other."""

    def __init__(self, mark):
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise OSError("no driver on this machine") from None

    def __call__(self, x):
        return x * 2


def test_a_worker_that_cannot_load_a_spare_replica_is_done_without(
    client, ddf, pdf, tmp_path
):
    # One replica of several that did not load ended the job.
    source = dask_infer.ModelSource.from_factory(LoadsOnce, str(tmp_path / "mark"))
    pred = ddf.infer.predict(
        source, columns="a", resources={"GPU": 1}, meta="float32", batch_size=5
    )
    np.testing.assert_allclose(pred.compute()["prediction"], pdf.a * 2)
    assert len(dask_infer.replicas()) == 1


class Exits(torch.nn.Module):
    def forward(self, x):
        if type(x) is torch.Tensor and bool((x.abs() > 1e3).any()):
            raise SystemExit("the model gives up")
        return x


def test_a_model_that_exits_ends_the_job_and_no_worker(client, pdf):
    # SystemExit was raised again on the event loop of the feeder's worker.
    bad = pdf.copy()
    bad.iloc[50] = 1e6
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), Exits(), torch.nn.Linear(4, 1))
    pids = client.run(os.getpid)
    pred = dd.from_pandas(bad, npartitions=4).infer.predict(
        model, parallel=Layout(stages=["1", "2"], replicas=1)
    )
    with pytest.raises(PartitionError, match="gives up"):
        pred.compute()
    assert client.run(os.getpid) == pids


@pytest.mark.parametrize(
    ("batch_size", "microbatch", "most"), [(5, 100, 5), (100, 5, 5), ("auto", 7, 7)]
)
def test_a_microbatch_is_no_larger_than_either_limit(
    client, ddf, pdf, model, batch_size, microbatch, most
):
    # batch_size= was taken instead of the layout's microbatch, whichever was smaller.
    def rows(output, frame):
        return torch.full((len(frame),), float(len(frame)))

    pred = ddf.infer.predict(
        model, parallel=Layout(stages=2, microbatch=microbatch),
        batch_size=batch_size, postprocess=rows,
    )  # fmt: skip
    assert pred["prediction"].max().compute() == most


class Picky(torch.nn.Module):
    """Refuses rows that are not as large as those of the job."""

    def forward(self, x):
        if type(x) is torch.Tensor and bool((x < 500).any()):
            raise ValueError("rows start at 500")
        return x - 1000


def test_a_model_that_refuses_synthetic_rows_is_balanced_by_bytes(client, pdf):
    # Blocks are timed with synthetic rows, and what these raised ended the job.
    torch.manual_seed(4)
    model = torch.nn.Sequential(
        Picky(), torch.nn.Linear(2, 64), torch.nn.Linear(64, 64),
        torch.nn.Linear(64, 64), torch.nn.Linear(64, 1),
    )  # fmt: skip
    large = pdf + 1000
    pred = dd.from_pandas(large, npartitions=5, sort=False).infer.predict(
        model, parallel=Layout(stages=2, replicas=1)
    )
    near(pred.compute(), by_hand(model, large), large)
    events = [str(event) for _, event in client.get_events(TOPIC)]
    (planned,) = [text for text in events if "bytes of weights" in text]
    assert "ValueError: rows start at 500" in planned
    rows = dask_infer.replicas().sort_values("stage")
    assert list(rows.bytes) == [4 * (192 + 4160), 4 * (4160 + 65)]
