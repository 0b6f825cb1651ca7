"""Weights on hosts that do not share a file system: asked for once, received once.

Workers with stores of their own stand for hosts: everything else is as on one machine.
"""

import contextlib
import shutil
import time
from collections import Counter

import dask
import numpy as np
import pandas as pd
import pytest
import torch
from dask import dataframe as dd
from distributed import Client, Nanny, Scheduler, SpecCluster

import dask_infer
from dask_infer.replica.delivery import DELIVERED, _Delivery


@contextlib.contextmanager
def hosts(*stores):
    """A cluster with one worker for each store; equal stores are one host."""
    workers = {i: nanny(store) for i, store in enumerate(stores)}
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "port": 0}}
    with (
        SpecCluster(workers=workers, scheduler=scheduler) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(len(stores))
        yield cluster, client


def nanny(store):
    # A nanny hands its own configuration on, which is stronger than the environment.
    own = {
        "infer": {"store": {"path": str(store)}, "delivery": {"offer-timeout": "5s"}}
    }
    config = dask.config.merge(dask.config.config, own)
    return {"cls": Nanny, "options": {"nthreads": 1, "config": config}}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Linear(4, 300_000, bias=False)


@pytest.fixture
def ddf():
    pdf = pd.DataFrame(np.ones((16, 4), "float32"), columns=list("abcd"))
    return dd.from_pandas(pdf, npartitions=8)


def deliveries(client, key):
    """Who received the entry, from whom."""
    events = [event for _, event in client.get_events(DELIVERED)]
    return [(e["worker"], e["source"]) for e in events if e["key"] == key]


def warm_all(client, job):
    """Run one row on every worker at once, so that each must have the model."""
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    client.gather(
        [client.submit(warm, job, i, workers=[w]) for i, w in enumerate(workers)]
    )


def test_each_host_receives_the_weights_once(tmp_path, model, ddf):
    a, b, c = (tmp_path / name for name in "abc")
    with hosts(a, a, b, b) as (cluster, client):
        pred = ddf.infer.predict(model, columns=list("abcd"), keep=False, output="p")
        spec = pred.expr.job.model
        expected = model(torch.ones(4)).detach().numpy()
        total = pred.p.map_partitions(
            lambda s: pd.Series([s.infer.to_numpy().sum()]), meta=(None, "float64")
        )
        pred.optimize()  # as every compute does, which is when clients begin to answer
        warm_all(client, pred.expr._job_bytes)
        got = deliveries(client, spec.blob.key)
        assert len(got) == 2
        paths = client.run(lambda: dask.config.get("infer.store.path"))
        assert {paths[w] for w, _ in got} == {str(a), str(b)}

        # A host that joins later is served too, by whoever has it.
        cluster.worker_spec[4] = nanny(c)
        cluster.scale(5)
        client.wait_for_workers(5)
        warm_all(client, pred.expr._job_bytes)
        got = deliveries(client, spec.blob.key)
        assert len(got) == 3
        assert Counter(s.startswith("tcp") for _, s in got)[True] >= 1
        assert total.compute().sum() == pytest.approx(16 * expected.sum(), rel=1e-3)


def warm(job, _):
    """Run one row on this worker, so that it must have the model."""
    from dask_infer.graph.tasks import run_partition

    frame = pd.DataFrame(np.ones((1, 4), "float32"), columns=list("abcd"))
    return len(run_partition(frame, job, ("p",)))


def test_what_no_process_has_any_more_is_named(tmp_path, model, ddf):
    with hosts(tmp_path / "a") as (_, client):
        # One task: Dask would resume another that still waits for weights and fails.
        one = ddf.repartition(npartitions=1)
        pred = one.infer.predict(model, columns=list("abcd"), keep=False)
        from dask_infer.model.store.blob_store import default_store

        path = default_store().path(pred.expr.job.model.blob.key)
        shutil.move(path, tmp_path / "away")
        with pytest.raises(
            dask_infer.ModelLoadError, match="no worker or connected client has them"
        ):
            pred.compute()
        shutil.move(tmp_path / "away", path)
        for _ in range(100):  # the same task again would still be the failed one
            if not client.run_on_scheduler(
                lambda dask_scheduler: len(dask_scheduler.tasks)
            ):
                break
            time.sleep(0.05)
        assert len(pred.compute()) == 16


def test_a_sender_that_leaves_midway_is_followed_by_another_round(tmp_path):
    with dask.config.set({"infer.delivery.timeout": 60}):
        delivery = _Delivery(None, "k", tmp_path / "k")
    delivery.offered = True
    delivery.next_round()
    assert delivery.patience == 40
    delivery.last_progress -= 61
    with pytest.raises(dask_infer.ModelLoadError, match="no part of the weights k"):
        delivery.next_round()
    delivery.offered = False
    with pytest.raises(dask_infer.ModelLoadError, match="no worker or connected"):
        delivery.next_round()
