"""The line that ends a job in the scheduler's log."""

from __future__ import annotations

import logging
import time

import dask.dataframe as dd
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

from dask_infer.dashboard.job_log import ENDED, JobLog
from dask_infer.metrics.job_records import JobRecords
from dask_infer.metrics.sums import Label, Sums
from tests.conftest import QUIET

JOB, MODEL = Label("Linear-1", None, "5e6f"), Label("Linear-1")


def ran(rows: int, running: int = 0) -> dict[Label, Sums]:
    seconds = {"forward": rows / 100, "read": 0.1}
    return {JOB: Sums({"rows": rows}, seconds, {"partitions": running})}


def test_a_job_is_logged_once_when_it_has_ended(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "dask_infer.dashboard")
    records, log = JobRecords(), JobLog()

    def look(now: float, rows: int, running: int) -> int:
        records.update(now, ran(rows, running), {})
        log.update(now, records.records)
        return len(caplog.records)

    assert look(100, 50, 1) == 0
    assert look(100 + 2 * ENDED, 50, 1) == 0  # it computes, and sends nothing new
    assert look(400, 800, 0) == 0
    assert look(400 + ENDED / 2, 800, 0) == 0  # the next partition may begin
    assert look(400 + ENDED, 800, 0) == 1
    assert look(1000, 800, 0) == 1
    assert "Linear-1 (job 5e6f): 800 rows in 300.60 s; compute-bound" in caplog.text
    assert "device=" in caplog.text  # the remedy
    assert look(2000, 900, 0) == 1
    assert look(2000 + ENDED, 900, 0) == 2  # it was computed once more


def test_what_is_known_at_the_end_is_logged(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "dask_infer.dashboard")
    records, log = JobRecords(), JobLog()
    records.update(1, ran(5, running=1), {})
    for _ in range(2):
        log.update(1, records.records, last=True)
    assert len(caplog.records) == 1
    records.records.clear()
    log.update(2, records.records)
    assert not log._logged  # nothing grows with jobs


def is_counted(client: Client, rows: int) -> bool:
    jobs = client.sync(client.scheduler.infer_jobs)
    return any(job["sums"][0][3].get("rows") == rows for job in jobs or [])


def test_a_scheduler_that_closes_logs_its_last_job(caplog: pytest.LogCaptureFixture):
    frame = pd.DataFrame({"a": range(1000)}, dtype="float32")
    ddf = dd.from_pandas(frame, npartitions=4)
    options = {"processes": False, "silence_logs": False, **QUIET}
    with caplog.at_level(logging.INFO, "dask_infer.dashboard"):
        with LocalCluster(n_workers=1, **options) as cluster, Client(cluster) as client:
            ddf.infer.predict(torch.nn.Linear(1, 1), columns=["a"]).compute()
            while not is_counted(client, 1000):
                time.sleep(0.1)
        lines = [r.message for r in caplog.records if r.name.endswith("job_log")]
    (line,) = lines
    assert "1,000 rows" in line and "Linear-" in line
    assert ".." not in line.replace("=...", "")
