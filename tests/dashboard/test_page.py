"""The page on real schedulers, however they are started, and in a real browser."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

import dask_infer
from dask_infer.dashboard.page_tables import TableRow, by_model
from dask_infer.dashboard.watch import NAME
from dask_infer.metrics.sums import ACTIVITIES, Label, Sums

pytest.importorskip("bokeh")

from tests.dashboard.browser import CHROMIUM, browser

PLOTS = ("replicas", "rows", "time", "windows", "failures")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@contextmanager
def cluster(**options: Any) -> Iterator[Client]:
    options = {"dashboard_address": "127.0.0.1:0", "processes": False} | options
    options["silence_logs"] = False  # Dask would silence what the tests read, too
    own = LocalCluster(n_workers=2, threads_per_worker=1, **options)
    with own, Client(own) as client:
        yield client


def address(client: Client) -> str:
    return f"http://127.0.0.1:{client.scheduler_info()['services']['dashboard']}"


def fetch(client: Client, path: str) -> str:
    with urllib.request.urlopen(f"{address(client)}/{path}", timeout=60) as answer:
        return str(answer.read().decode())


def predict(rows: int = 1000, model: Any = None, **options: Any) -> dd.DataFrame:
    frame = pd.DataFrame({"a": np.arange(rows, dtype="float32")})
    options = {"columns": ["a"], "batch_size": 100} | options
    ddf = dd.from_pandas(frame, npartitions=4)
    return ddf.infer.predict(model or torch.nn.Linear(1, 1), **options)


def eventually(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def watched(client: Client) -> bool:
    return bool(
        client.run_on_scheduler(lambda dask_scheduler: NAME in dask_scheduler.plugins)
    )


def check_pages(client: Client) -> None:
    page = fetch(client, "infer")
    assert page.count('<a href="infer">') == 1
    assert page.count('<a href="individual-infer-rows">') == 1
    assert fetch(client, "status").count('<a href="infer">') == 1
    plots = json.loads(fetch(client, "individual-plots.json"))
    assert {f"/individual-infer-{name}" for name in PLOTS} <= set(plots.values())
    assert "/individual-task-stream" in plots.values()
    for name in PLOTS:
        assert "Dask: Infer" in fetch(client, f"individual-infer-{name}")


def test_the_page_comes_with_the_first_prediction_and_survives_a_restart():
    with cluster(processes=True) as client:
        assert not watched(client)
        predict().compute()
        eventually(lambda: watched(client))
        check_pages(client)
        predict().compute()
        client.restart()
        predict().compute()
        check_pages(client)


def test_registered_twice_it_is_there_once():
    from dask_infer.dashboard.watch import Watch

    with cluster() as client:
        client.register_plugin(Watch())
        client.register_plugin(Watch())
        check_pages(client)


def test_without_a_dashboard_nothing_fails():
    quiet = {"dashboard": False, "dashboard_address": ":0"}
    with cluster(scheduler_kwargs=quiet, dashboard_address=None) as client:
        predict().compute()
        eventually(lambda: watched(client))


@contextmanager
def dask_scheduler(*options: str, env: Any = None) -> Iterator[tuple[str, str]]:
    """Addresses of a `dask scheduler` and of its dashboard."""
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    command += ["--host", "127.0.0.1", "--port", str(ports[0])]
    command += ["--dashboard-address", f"127.0.0.1:{ports[1]}", *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=env)
    try:
        yield f"tcp://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    finally:
        process.terminate()
        process.wait(60)


def get(url: str) -> str:
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return str(answer.read().decode())
        except OSError:
            assert time.monotonic() < end, url
            time.sleep(0.2)


@pytest.mark.slow
def test_a_scheduler_may_preload_the_page_under_a_prefix():
    options = ("--preload", "dask_infer.dashboard", "--dashboard-prefix", "/some/where")
    with dask_scheduler(*options) as (_, http):
        page = get(f"{http}/some/where/infer")
        assert '<a href="infer">' in page
        assert "No prediction has run" not in page  # it comes over the websocket
        plots = json.loads(get(f"{http}/some/where/individual-plots.json"))
        assert "/individual-infer-time" in plots.values()


@pytest.mark.slow
def test_a_scheduler_may_preload_the_page_without_a_dashboard():
    options = ("--preload", "dask_infer.dashboard", "--no-dashboard")
    with (
        dask_scheduler(*options) as (address, _),
        Client(address, timeout=60) as client,
    ):
        assert watched(client)


def test_a_scheduler_that_cannot_import_the_package_harms_no_job(monkeypatch, caplog):
    from distributed import Scheduler

    async def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise ModuleNotFoundError("No module named 'dask_infer'")

    monkeypatch.setattr(Scheduler, "register_scheduler_plugin", refuse)
    with caplog.at_level(logging.WARNING, "dask_infer"), cluster() as client:
        assert len(predict().compute()) == 1000
        eventually(lambda: "must be importable there" in caplog.text)
        assert not watched(client)


def test_a_page_that_cannot_be_made_does_not_stop_the_counters(monkeypatch, caplog):
    from dask_infer.dashboard import page

    def fail(*args: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(page, "add_dashboard_pages", fail)
    with caplog.at_level(logging.WARNING, "dask_infer"), cluster() as client:
        predict().compute()
        eventually(lambda: rows_counted(client) == 1000)
        assert "the page Infer could not be added" in caplog.text


def test_a_missing_package_is_said_in_one_line(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "dask_infer.dashboard.prometheus", raising=False)
    with caplog.at_level(logging.INFO, "dask_infer.dashboard"), cluster() as client:
        predict().compute()
        eventually(lambda: rows_counted(client) == 1000)
        assert caplog.text.count("needs a package that is missing") == 1


def test_a_model_has_one_colour_in_all_plots_whichever_moves():
    """Lines are kept in the order in which they moved, and took colours by that."""
    from dask_infer.dashboard.cluster_counters import ClusterCounters
    from dask_infer.dashboard.plots import Throughput, Windows

    counters = ClusterCounters({})
    rows, windows = Throughput(counters), Windows(counters)
    for now, label in enumerate([Label("B"), Label("A"), Label("B", 0), Label("B")]):
        counters.history.update(now, {label: Sums({"rows": now + 1})})
        rows.update()
        windows.update()
    colors = dict(
        zip(rows.source.data["model"], rows.source.data["color"], strict=True)
    )
    assert len(set(colors.values())) == 2
    assert list(windows.source.data["color"]) == [colors["B"]]
    before = dict(rows.source.data)
    counters.history.update(9, {Label("A"): Sums({"rows": 99})})
    rows.update()
    assert rows.source.data["color"] == before["color"]
    assert rows.source.data["model"] == before["model"]


def rows_counted(client: Client) -> int:
    """Rows of all jobs, as clients read them; 0 before the plugin is there."""
    if not watched(client):
        return 0
    jobs = client.sync(client.scheduler.infer_sums)
    return int(sum(counts.get("rows", 0) for _, _, _, counts, *_ in jobs))


def test_clients_read_sums_and_jobs():
    with cluster() as client:
        predict().compute()
        eventually(lambda: rows_counted(client) == 1000)
        (job,) = client.sync(client.scheduler.infer_jobs)
        assert not job["running"]
        assert job["sums"][0][3]["partitions"] == 4
        sums = client.sync(client.scheduler.infer_sums)
        assert [line[2] for line in sums] == [job["job"]]


@pytest.mark.slow
def test_what_a_killed_worker_had_counted_stays():
    with cluster(processes=True) as client:
        predict().compute()
        eventually(lambda: rows_counted(client) == 1000)
        before = set(client.scheduler_info()["workers"])
        killed = sorted(before)[0]
        client.submit(os._exit, 1, workers=[killed], retries=0, pure=False)
        eventually(lambda: killed not in client.scheduler_info()["workers"])
        assert rows_counted(client) == 1000
        predict().compute()
        eventually(lambda: rows_counted(client) == 2000)


@needs_chromium
def test_a_browser_shows_the_numbers_of_replicas():
    with cluster(processes=True) as client:
        model = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Linear(4, 1))
        layout = dask_infer.Layout(stages=2)
        predict(4000).compute()
        kept = predict(2000, model, parallel=layout).persist()
        assert len(kept.compute()) == 2000
        replicas = dask_infer.replicas()
        url = f"{address(client)}/infer"

        def once_more() -> pd.DataFrame:
            predict(4000).compute()
            return dask_infer.replicas()

        table, text, failures, shares = asyncio.run(look(url, 10_000, once_more))
        columns = [table[name] for name in ("worker", "part", "rows", "bytes")]
        shown = list(zip(*columns, strict=True))
        for row in replicas.itertuples():
            part = "whole model" if pd.isna(row.stage) else f"stage {row.stage}"
            assert (row.worker, part, row.rows, row.bytes) in shown
            assert row.worker in text
        assert "10,000 rows predicted" in text
        assert failures["failed"] == failures["halvings"] == [0, 0]
        for line in zip(*(shares[activity] for activity in ACTIVITIES), strict=True):
            assert sum(line) == pytest.approx(100)


async def look(url: str, rows: int, once_more: Any) -> tuple[Any, ...]:
    """Return what the page shows once all rows have arrived on it.

    Then more of them arrive while it is open.
    """
    async with browser() as page:
        await page.open(url)
        while sum((table := await page.source("infer_replicas"))["rows"]) < rows:
            await asyncio.sleep(0.2)
        await page.until("document.title == 'Dask: Infer'")
        text = await page.text()
        while "6,000 rows predicted" not in text:
            await asyncio.sleep(0.2)
            text = await page.text()
        failures = await page.source("infer_failures")
        shares = await page.source("infer_time")
        for row in (await asyncio.to_thread(once_more)).itertuples():
            shown = (f"{row.worker} cpu", f" {row.rows:,} ", "10,000 rows predicted")
            while not all(part in text for part in shown):
                await asyncio.sleep(0.2)
                text = await page.text()
        return table, text, failures, shares


def test_rows_of_shards_count_once():
    # All shards of a stage run the same rows.
    lines = [
        TableRow(Label("model", 0), [worker], rows=5, shards={shard})
        for shard, worker in enumerate("ab")
    ]
    assert [line.part for line in lines] == ["stage 0, shard 0", "stage 0, shard 1"]
    (together,) = by_model(lines)
    assert (together.rows, together.part) == (5, "stage 0, 2 shards")
