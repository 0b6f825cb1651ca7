"""Sweeps on workers: a model larger than their memory, and workers that are lost."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from distributed import Client, LocalCluster, wait

from dask_infer import Layout, ModelSource, PartitionError
from tests.conftest import QUIET

from .conftest import near
from .test_sweep import CUT, WITHIN, ReorderedWithin, faulty, forwards

MIB = 2**20
WIDTH, BLOB = 1024, 32 * MIB


class Wide(torch.nn.Module):
    """A residual layer of 32 MiB, without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = torch.nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def build(depth: int) -> torch.nn.Module:
    return torch.nn.Sequential(*[Wide() for _ in range(depth)])


def write(depth: int, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Write a checkpoint whose layers are all equal; return the weights of one."""
    torch.manual_seed(0)
    up = torch.randn(4 * WIDTH, WIDTH) / 2000
    down = torch.randn(WIDTH, 4 * WIDTH) / 2000
    header, end = {}, 0
    for layer in range(depth):
        for name, tensor in (("up", up), ("down", down)):
            entry = {"dtype": "F32", "shape": list(tensor.shape)}
            entry["data_offsets"] = [end, end + tensor.nbytes]
            header[f"{layer}.{name}.weight"] = entry
            end += tensor.nbytes
    text = json.dumps(header).encode()
    with file.open("wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for _ in range(depth):
            target.write(memoryview(up.numpy()))
            target.write(memoryview(down.numpy()))
    return up, down


def watch(dask_worker: Any) -> None:
    """Keep the most memory that a worker takes, and its states, in its attributes."""
    dask_worker.seen = (0, {"running"})

    def look() -> None:
        process = psutil.Process()
        while dask_worker.status.name == "running":
            most, states = dask_worker.seen
            used = process.memory_info().rss
            dask_worker.seen = (max(most, used), {*states, dask_worker.status.name})
            time.sleep(0.01)
        dask_worker.seen = (0, {dask_worker.status.name})

    threading.Thread(target=look, daemon=True).start()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_of_three_times_the_workers_memory(tmp_path: Path) -> None:
    limit, depth = 800 * MIB, 76
    up, down = write(depth, tmp_path / "model.safetensors")
    assert depth * BLOB > 3 * limit
    values = np.random.default_rng(0).normal(size=(24, WIDTH)).astype("float32")
    frame = pd.DataFrame({"x": list(values)})
    with dask.config.set({"dataframe.convert-string": False}):
        ddf = dd.from_pandas(frame, npartitions=4)
    model = ModelSource.from_factory(
        build, depth, weights=str(tmp_path / "model.safetensors")
    )
    pred = ddf.infer.predict(
        model, columns="x", shapes={"x": (WIDTH,)}, keep=False, parallel="sweep"
    )
    options = {"n_workers": 1, "threads_per_worker": 2, "memory_limit": limit}
    with LocalCluster(**options, **QUIET) as cluster, Client(cluster) as client:
        client.run(watch)
        before = client.run(os.getpid)
        result = pred["prediction"].infer.to_numpy()
        ((peak, states),) = client.run(lambda dask_worker: dask_worker.seen).values()
        assert client.run(os.getpid) == before
    assert states == {"running"}
    assert 0 < peak < limit
    x = torch.tensor(values)
    with torch.inference_mode():
        for _ in range(depth):
            x = x + torch.relu(x @ up.T) @ down.T
    np.testing.assert_allclose(result, x, rtol=1e-4, atol=1e-4)


def test_the_error_of_a_row_comes_back_from_a_worker(client, ddf, tmp_path):
    pred = ddf.infer.predict(faulty(tmp_path / "log"), parallel=CUT)
    with pytest.raises(PartitionError, match="ValueError: too large") as caught:
        pred.compute()
    assert caught.value.stage == 1
    assert caught.value.worker.startswith("tcp://")


@pytest.mark.slow
def test_a_group_that_only_hangs_on_a_worker(client, ddf, pdf, tmp_path):
    model = faulty(tmp_path / "log", above=49.0, nap=4.0)
    ddf.infer.predict(model, parallel=CUT).compute()  # a first load takes longer
    hang = dd.from_pandas(pdf.assign(a=np.float32(50)), npartitions=1)
    pred = hang.infer.predict(
        model, parallel=CUT, on_error="null", timeout=1, batch_size=64
    )
    with pytest.raises(PartitionError, match="9 forwards hung and none ended"):
        pred.compute()
    time.sleep(4)  # for the abandoned threads


def test_bad_rows_and_two_jobs_at_once(client, ddf, pdf, tmp_path, model, expected):
    bad = (pdf.a > 2).to_numpy()
    first = ddf.infer.predict(faulty(tmp_path / "log"), parallel=CUT, on_error="null")
    second = ddf.infer.predict(model, parallel=Layout(sweep=True, stages=3))
    ours, theirs = dask.compute(first, second)
    assert ours["prediction"].isna().to_numpy().tolist() == bad.tolist()
    near(ours[~bad], pdf.a[~bad].to_numpy(), pdf[~bad])
    near(theirs, expected, pdf)


def test_rows_that_a_layer_reorders_on_workers(client, ddf, pdf, tmp_path):
    model = ReorderedWithin(tmp_path / "log", "sort", above=1.9, most=16)
    pred = ddf.infer.predict(model, parallel=WITHIN, on_error="null")
    found = pred.compute()["prediction"].to_numpy()
    wanted = pdf["a"].where(pdf["a"] <= 1.9).to_numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_a_pass(store, pdf, tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    frame = dd.from_pandas(pdf, npartitions=6)
    pred = frame.infer.predict(
        faulty(log, above=1.9, nap=0.3), parallel=CUT, batch_size=16
    )
    options = {"n_workers": 2, "threads_per_worker": 1}
    settings = {"infer.sweep.activations": 0}
    with (
        dask.config.set(settings),
        LocalCluster(**options, **QUIET) as cluster,
        Client(cluster) as client,
    ):
        client.run(dask.config.set, settings)
        future = client.compute(pred)
        deadline = time.monotonic() + 60
        while not forwards(log) and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = next(iter(client.run(os.getpid).values()))
        psutil.Process(pid).kill()
        near(future.result(), pdf.a.to_numpy(), pdf)
        left = client.run(lambda dask_worker: os.listdir(dask_worker.local_directory))
        assert "dask-infer" not in str(left)


def test_a_job_that_is_cancelled_stops_its_pass(client, pdf, tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    frame = dd.from_pandas(pdf, npartitions=1)
    pred = frame.infer.predict(
        faulty(log, above=-1e9, nap=0.2), parallel=CUT, batch_size=2
    )
    future = client.compute(pred)
    deadline = time.monotonic() + 60
    while not forwards(log) and time.monotonic() < deadline:
        time.sleep(0.05)
    future.cancel()
    wait(client.map(lambda n: n, range(4), pure=False), timeout=15)
    time.sleep(0.5)
    done = len(forwards(log))
    time.sleep(0.5)
    assert len(forwards(log)) == done < 101


def test_a_partition_that_leaves_a_pass_does_not_stop_the_others(
    threaded_client, pdf, tmp_path
):
    log = tmp_path / "log"
    log.write_text("")
    frame = dd.from_pandas(pdf.iloc[:100], npartitions=1)
    model = faulty(log, above=-1e9, nap=0.05)
    options = {"parallel": CUT, "batch_size": 5, "keep": False}
    first = frame.infer.predict(model, output="first", **options)
    second = frame.infer.predict(model, output="prediction", **options)
    leaves, stays = (threaded_client.compute(each) for each in (first, second))
    deadline = time.monotonic() + 60
    while len(forwards(log)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    leaves.cancel()
    near(stays.result(timeout=60), pdf.a[:100].to_numpy(), pdf.iloc[:100])
