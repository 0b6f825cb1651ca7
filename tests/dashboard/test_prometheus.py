"""The series that Prometheus scrapes from the scheduler."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import REGISTRY, generate_latest

from dask_infer.dashboard.cluster_counters import ClusterCounters
from dask_infer.dashboard.prometheus import add_series
from dask_infer.metrics.cluster_sums import VERSION
from dask_infer.metrics.sums import Label, Sums, to_message

ROOT = Path(__file__).parents[2]
WATCHING, GRAFANA = ROOT / "docs/watching.md", ROOT / "examples/grafana.json"


def state(rows: int, stage: int | None = None) -> SimpleNamespace:
    sums = Sums(
        {"rows": rows, "forwards": 3, "failed_rows": 1, "halvings": 2},
        {"forward": 0.5},
        {"partitions": 1, "window": 4, "inside": 2},
    )
    message = {
        "version": VERSION,
        "at": time.monotonic(),
        "sums": to_message({Label("Linear-1", stage): sums}),
        "replicas": [
            {"label": "Linear-1", "stage": stage, "serving": False, "bytes": 8,
             "device": "cpu", "rows": rows, "idle": 0.0, "model": "Linear"}
        ],
        "host": {},
    }  # fmt: skip
    return SimpleNamespace(metrics={"infer": message})


def exposed() -> str:
    text = generate_latest(REGISTRY).decode()
    return "\n".join(line for line in text.splitlines() if "dask_infer" in line) + "\n"


def test_series_are_counted_by_model_stage_and_worker():
    counters = ClusterCounters({"tcp://a": state(10), "tcp://b": state(7, stage=1)})
    add_series(counters)
    text = exposed()
    whole = '{model="Linear-1",stage="",worker="tcp://a"}'
    assert f"dask_infer_rows_total{whole} 10.0" in text
    assert (
        'dask_infer_rows_total{model="Linear-1",stage="1",worker="tcp://b"} 7.0' in text
    )
    assert f"dask_infer_running_partitions{whole} 1.0" in text
    assert 'activity="forward"' in text
    assert "dask_infer_replica_bytes" in text
    # Who left is counted on.
    counters.remove("tcp://a")
    assert (
        'dask_infer_rows_total{model="Linear-1",stage="",worker="gone"} 10.0'
        in exposed()
    )


def test_a_second_scheduler_takes_over_and_series_come_once():
    first = ClusterCounters({"tcp://a": state(10)})
    second = ClusterCounters({"tcp://b": state(20)})
    add_series(first)
    add_series(second)
    text = exposed()
    assert text.count("# TYPE dask_infer_rows_total ") == 1
    assert "tcp://a" not in text
    assert 'worker="tcp://b"} 20.0' in text
    del second
    assert "tcp://b" not in exposed()


def test_documentation_and_grafana_name_series_that_exist():
    counters = ClusterCounters({"tcp://a": state(10), "tcp://b": state(7, stage=1)})
    add_series(counters)
    exist = set(re.findall(r"# TYPE (dask_infer_\w+)", exposed()))
    documented = set(re.findall(r"`(dask_infer_\w+)`", WATCHING.read_text()))
    assert documented == exist
    assert len(queries()) > 8
    assert set(re.findall(r"dask_infer_\w+", " ".join(queries()))) <= exist


def queries() -> list[str]:
    panels = json.loads(GRAFANA.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_rates_leave_out_workers_that_left():
    """Their sums move to "gone" at once: a rate of that is a peak that never was."""
    rates = re.findall(r"rate\(([^)]*)\)", " ".join([*queries(), WATCHING.read_text()]))
    assert len(rates) > 5
    assert all('worker!="gone"' in rate for rate in rates)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
def test_prometheus_can_read_the_queries(tmp_path: Path):
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$model", ".*")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "rules.json"  # every JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "grafana", "rules": rules}]}))
    check = ["promtool", "check", "rules", str(file)]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
def test_promtool_finds_nothing_to_complain_of():
    counters = ClusterCounters({"tcp://a": state(10), "tcp://b": state(7, stage=1)})
    add_series(counters)
    check = ["promtool", "check", "metrics"]
    done = subprocess.run(check, input=exposed(), capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
