"""Packages that are missing, and versions that differ, in real processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask.dataframe as dd
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

import dask_infer
from tests.conftest import QUIET
from tests.dashboard.test_page import dask_scheduler, eventually, get, predict

ROOT = Path(__file__).parents[2]

#: Read by every Python process at its start: refuses to import what is named there.
BLOCKER = """
import os, sys

BLOCKED = os.environ["BLOCKED"].split(",")

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(each + ".") for each in BLOCKED):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Start processes in which some packages cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    paths = f"{tmp_path}{os.pathsep}{ROOT}"

    def environment(*packages: str) -> dict[str, str]:
        return {**os.environ, "BLOCKED": ",".join(packages), "PYTHONPATH": paths}

    return environment


@contextmanager
def dask_worker(address: str, log: Path) -> Iterator[None]:
    """Run a worker with all packages."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", address]
    command += ["--no-nanny", "--no-dashboard", "--nthreads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file, env=environment)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


EVERYTHING = """
import logging, time
import dask.dataframe as dd, pandas as pd, torch
from distributed import Client, LocalCluster
import dask_infer

if __name__ == "__main__":
    logging.basicConfig(format="LOG %(name)s %(message)s")
    logging.getLogger("dask_infer").setLevel("INFO")
    ddf = dd.from_pandas(pd.DataFrame({"a": [float(i) for i in range(1000)]}), 4)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(**options, silence_logs=False) as c, Client(c) as client:
        pred = ddf.infer.predict(torch.nn.Linear(1, 1), columns=["a"])
        with dask_infer.progress():
            print("ROWS", len(pred.compute()))
        answer = dask_infer.why()
        print("WHY", answer)
        print("HTML", answer._repr_html_(), pred.infer._repr_html_())
"""


@pytest.mark.slow
def test_without_bokeh_jinja2_and_prometheus_client(tmp_path: Path, without):
    script = tmp_path / "everything.py"
    script.write_text(textwrap.dedent(EVERYTHING))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=200,
        env=without("bokeh", "jinja2", "prometheus_client"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ROWS 1000" in done.stdout
    assert "WHY Linear-" in done.stdout and "HTML None None" in done.stdout
    assert "Linear: 1,000 rows" in done.stderr
    missing = [line for line in done.stderr.splitlines() if "that is missing" in line]
    assert len(missing) == 2, done.stderr
    assert "bokeh" in missing[0] and "prometheus_client" in missing[1]


@pytest.mark.slow
def test_a_client_that_comes_late_brings_the_page(tmp_path: Path):
    with (
        dask_scheduler() as (address, http),
        dask_worker(address, tmp_path / "log"),
        Client(address, timeout=60),
    ):
        get(f"{http}/status")
        assert len(predict().compute()) == 1000
        assert '<a href="infer">' in get(f"{http}/infer")
        assert '<a href="infer">' in get(f"{http}/status")


@pytest.mark.slow
def test_a_scheduler_of_a_version_without_counters(
    tmp_path: Path, without, capsys: pytest.CaptureFixture[str]
):
    """Progress and `why` read what the workers send with their heartbeats."""
    log = tmp_path / "log"
    with (
        dask_scheduler(env=without("dask_infer.dashboard")) as (address, http),
        dask_worker(address, log),
        Client(address, timeout=60),
    ):
        with dask_infer.progress():
            assert len(predict().compute()) == 1000
        (job,) = dask_infer.why().jobs
        assert job.rows == 1000
        eventually(lambda: "must be importable there" in log.read_text())
        assert log.read_text().count("must be importable there") == 1
        assert '<a href="infer">' not in get(f"{http}/status")
    assert "Linear: 1,000 rows" in capsys.readouterr().err


@pytest.mark.slow
def test_a_scheduler_without_the_package_is_refused_by_its_name(without):
    """Dask unpickles the graph there (dask 2026.8.0), so the job cannot run."""
    with (
        dask_scheduler(env=without("dask_infer")) as (address, _),
        Client(address, timeout=60),
    ):
        with pytest.raises(RuntimeError, match="deserialization") as refused:
            predict().compute()
        assert "No module named 'dask_infer'" in str(refused.value.__cause__)


def no_counters() -> None:
    """Make a worker like one of a version that sends none."""
    from dask_infer.replica import setup_worker

    setup_worker.heartbeat_message = lambda worker: None


def later_version() -> None:
    """Make a worker like one of a version that sends others."""
    from dask_infer.replica import partition_counters

    partition_counters.VERSION = 99


@pytest.mark.slow
def test_workers_of_other_versions(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    options = {"threads_per_worker": 1, "silence_logs": False, **QUIET}
    ddf = dd.from_pandas(pd.DataFrame({"a": range(1000)}, dtype="float32"), 8)
    with (
        caplog.at_level(logging.WARNING, "dask_infer"),
        LocalCluster(n_workers=2, **options) as cluster,
        Client(cluster) as client,
    ):
        older, later = client.scheduler_info()["workers"]
        client.run(no_counters, workers=[older])
        client.run(later_version, workers=[later])
        pred = ddf.infer.predict(torch.nn.Linear(1, 1), columns=["a"])
        with dask_infer.progress():
            assert len(pred.compute()) == 1000
        assert "of another version" in repr(dask_infer.why())
        eventually(lambda: "counters of version 99" in caplog.text)
        assert caplog.text.count("use one version of dask_infer") == 1
    (line,) = [e for e in capsys.readouterr().err.splitlines() if e.startswith("[")]
    assert "Linear: 0 of 1,000 rows, the rest was not reported" in line
