"""What the scheduler makes of heartbeats, and the columns that the page shows."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from dask_infer.dashboard.cluster_counters import ClusterCounters
from dask_infer.dashboard.page_tables import (
    by_model,
    replica_table,
    summary,
    table_rows,
    time_table,
)
from dask_infer.metrics.cluster_sums import VERSION
from dask_infer.metrics.sums import Label, Sums, to_message

WHOLE, FIRST, FEEDER = Label("Linear-1"), Label("Net-2", 0), Label("Net-2")


def metrics(at: float, sums: dict[Label, Sums], *resident: Label) -> dict[str, object]:
    replicas = [
        {"label": label.model, "model": label.model, "stage": label.stage,
         "serving": label.stage is not None, "device": "cpu", "bytes": 100,
         "rows": sums[label].count("rows"), "idle": 0.0}
        for label in resident
    ]  # fmt: skip
    return {
        "infer": {
            "version": VERSION, "at": at, "sums": to_message(sums),
            "replicas": replicas, "host": {},
        }
    }  # fmt: skip


def at_work(at: float, rows: int) -> dict[str, object]:
    sums = {
        WHOLE: Sums({"rows": rows, "forwards": rows // 10}, {"forward": at}),
        FIRST: Sums({"rows": rows, "forwards": 1}, {"idle": 3 * at, "forward": at},
                    {"window": 4, "inside": 3}),
        FEEDER: Sums({"rows": rows}, {"wait": at}, {"partitions": 1}),
    }  # fmt: skip
    return metrics(at, sums, WHOLE, FIRST)


def counters(workers: int = 2) -> ClusterCounters:
    states = {
        f"tcp://{number:03}": SimpleNamespace(metrics=at_work(0, 0))
        for number in range(workers)
    }
    found = ClusterCounters(states)
    found.update()
    for state in states.values():
        state.metrics = at_work(10, 1000)
    found.update()
    return found


def test_the_table_has_a_line_for_each_replica_stage_and_feeder():
    table = replica_table(table_rows(counters()))
    assert table["part"] == 2 * ["whole model"] + 2 * ["feeders"] + 2 * ["stage 0"]
    assert table["worker"][:2] == ["tcp://000", "tcp://001"]
    assert table["rows"] == 6 * [1000]
    assert table["rate"] == pytest.approx(6 * [100])
    assert table["batch"][0] == 10
    assert table["window"][-1] == "3 / 4"


def test_two_hundred_workers_are_added_up_by_model_and_stage():
    found = table_rows(counters(200))
    assert len(found) == 600
    table = replica_table(by_model(found))
    assert table["part"] == ["whole model", "feeders", "stage 0"]
    assert table["worker"] == 3 * ["200 workers"]
    assert table["rows"] == 3 * [200_000]
    assert table["bytes"][0] == 20_000
    assert table["window"][-1] == "600 / 800"


def test_time_is_shown_in_shares():
    late, table = time_table(by_model(table_rows(counters())))
    assert late
    assert table["where"][0] == "Linear-1, whole model"
    assert table["forward"] == [100, 0, 25]
    assert table["idle"] == [0, 0, 75]


def test_nothing_yet_says_what_to_expect():
    nothing = ClusterCounters({"tcp://a": SimpleNamespace(metrics={})})
    nothing.update()
    assert "ddf.infer.predict" in summary(nothing, table_rows(nothing))
    assert replica_table([])["rows"] == []
    assert time_table([])[1]["where"] == []


def test_a_worker_that_leaves_between_two_looks_is_counted_to_its_last_heartbeat():
    state = SimpleNamespace(metrics={})
    found = ClusterCounters({"tcp://a": state})
    state.metrics = metrics(1.0, {WHOLE: Sums({"rows": 7})})
    found.remove("tcp://a")
    assert found.sums.by_model()[WHOLE].count("rows") == 7
    assert table_rows(found) == []


@pytest.mark.parametrize("message", [{"version": 99}, "nonsense", [], {"version": 1}])
def test_what_another_version_sends_is_passed_over_with_one_line(message, caplog):
    states = {
        name: SimpleNamespace(metrics={"infer": message}) for name in ("a", "b", "c")
    }
    found = ClusterCounters(states)
    with caplog.at_level(logging.WARNING, "dask_infer"):
        found.update()
    assert len(caplog.records) == 1
    assert "one version of dask_infer" in caplog.text


def test_the_page_shows_lines_of_what_moved():
    found = counters()
    found.update(note=True)
    line = found.history.lines[FIRST]
    assert (line[-1].inside, line[-1].window) == (6, 8)
    assert found.history.lines[WHOLE][-1].rows == 2000
