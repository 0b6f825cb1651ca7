"""What arrived from workers is kept: over lost messages, and after they left."""

from __future__ import annotations

import pytest

from dask_infer.metrics.cluster_sums import ClusterSums, Message
from dask_infer.metrics.job_records import KEPT, PAUSE, JobRecords
from dask_infer.metrics.sums import Label, Sums, to_message

MODEL = Label("Linear-1")
JOB = Label("Linear-1", None, "job")


def message(at: float, rows: int, label: Label = JOB, **levels: float) -> Message:
    sums = {label: Sums({"rows": rows}, {"forward": at}, dict(levels))}
    return Message(at, sums, [], {})


def test_messages_are_cumulative():
    sums = ClusterSums()
    sums.update("a", message(0, 10))
    sums.update("a", message(1, 30))  # whatever came between may be lost
    sums.update("b", message(1, 5))
    assert sums.by_model()[MODEL].count("rows") == 35
    assert sums.by_job()[JOB].count("rows") == 35


def test_a_worker_that_left_stays_in_the_sums_without_its_levels():
    sums = ClusterSums()
    sums.update("a", message(0, 10, partitions=1))
    sums.update("b", message(0, 1, partitions=1))
    sums.remove("a")
    sums.remove("a")
    assert sums.by_model()[MODEL].counts == {"rows": 11}
    assert sums.by_model()[MODEL].levels == {"partitions": 1}
    assert sums.by_job()[JOB].count("rows") == 11
    # The same address again starts from nothing.
    sums.update("a", message(0, 2))
    assert sums.by_model()[MODEL].count("rows") == 13


def test_a_job_that_a_worker_no_longer_lists_keeps_its_rows():
    sums = ClusterSums()
    sums.update("a", message(0, 10))
    sums.update("a", message(1, 10, label=MODEL))  # folded into its model
    assert sums.by_job()[JOB].count("rows") == 10
    assert sums.by_model()[MODEL].count("rows") == 10
    sums.update(
        "a", Message(2, {MODEL: Sums({"rows": 10}), JOB: Sums({"rows": 3})}, [], {})
    )
    assert sums.by_job()[JOB].count("rows") == 13
    assert sums.by_model()[MODEL].count("rows") == 13


def test_rates_look_back_some_seconds():
    sums = ClusterSums()
    for at in range(100):
        sums.update("a", message(at, 10 * at))
    assert sums.rates("rows") == {("a", MODEL): pytest.approx(10)}
    for at in range(100, 120):
        sums.update("a", message(at, 1000))
    assert sums.rates("rows") == {("a", MODEL): 0}
    assert sums.recent(30)[MODEL].count("rows") == pytest.approx(100, abs=50)


def test_nothing_grows_with_messages_jobs_and_workers():
    sums, records = ClusterSums(), JobRecords()
    for number in range(10_000):
        label = Label("Linear-1", None, f"job-{number}")
        sums.update(f"worker-{number % 50}", message(number, number, label))
        if number % 100 == 99:
            sums.remove(f"worker-{number % 50}")
            records.update(number, sums.by_job(), sums.by_model())
    assert len(sums.by_job()) < 150
    assert len(records.records) == KEPT
    assert all(len(worker._before) < 40 for worker in sums.workers.values())


def test_models_of_workers_that_left_are_bounded():
    sums = ClusterSums()
    for number in range(500):
        sums.update("a", message(0, 1, Label(f"model-{number}", None, "job")))
        sums.remove("a")
    assert len(sums.by_model()) <= 101
    assert sum(each.count("rows") for each in sums.by_model().values()) == 500


def test_another_version_of_the_message_is_refused():
    with pytest.raises(ValueError, match="99"):
        Message.read({"version": 99})


def test_a_job_is_recorded_with_what_stages_did_meanwhile():
    records = JobRecords()
    stage = Label("Linear-1", 0)
    running = {JOB: Sums({"rows": 1}, {}, {"partitions": 2})}
    records.update(10.0, running, {stage: Sums({"rows": 100})})
    records.update(12.0, {JOB: Sums({"rows": 9})}, {stage: Sums({"rows": 108})})
    records.update(99.0, {JOB: Sums({"rows": 9})}, {stage: Sums({"rows": 500})})
    sent = records.records[JOB].to_message()
    assert (sent["start"], sent["end"], sent["running"]) == (10.0, 12.0, False)
    assert sent["stages"] == to_message({stage: Sums({"rows": 8})})


def test_a_job_that_is_over_when_it_is_seen_has_its_stages():
    records, stage = JobRecords(), Label("Linear-1", 0)
    records.update(10.0, {}, {stage: Sums({"forwards": 3})}, {"cpu": 1.0})
    records.update(10.5, {JOB: Sums({"rows": 9})}, {stage: Sums({"forwards": 5})})
    sent = records.records[JOB].to_message()
    assert sent["stages"] == to_message({stage: Sums({"forwards": 2})})
    assert (sent["seen"], sent["end"]) == (10.0, 10.5)


def test_forwards_of_stages_that_are_reported_late_are_of_the_job():
    records, stage = JobRecords(), Label("Linear-1", 0)
    done = {JOB: Sums({"rows": 9})}
    records.update(10.0, done, {stage: Sums({"forwards": 3})})
    late = {stage: Sums({"forwards": 5}), Label("Linear-1", 1): Sums({"forwards": 2})}
    records.update(10.5, done, late)
    idle = {stage: Sums({"forwards": 5}, {"idle": 3.0})}
    records.update(11.0, done, idle)
    sent = records.records[JOB].to_message()
    assert sent["end"] == 10.0
    assert [each[3:5] for each in sent["stages"]] == [
        [{"forwards": 2}, {}],
        [{"forwards": 2}, {}],
    ]


def test_a_job_that_goes_on_after_a_pause_is_another_run():
    """What its stages did in the pause, nothing, hid what limited it."""
    records, stage = JobRecords(), Label("Linear-1", 0)
    idle = {stage: Sums(seconds={"idle": 1000.0})}
    records.update(10.0, {JOB: Sums({"rows": 5})}, {})
    records.update(10.0 + PAUSE, {JOB: Sums({"rows": 7})}, {})  # the same run
    assert records.records[JOB].to_message()["start"] == 10.0
    again = {JOB: Sums({"rows": 9}, {}, {"partitions": 1})}
    records.update(1000.0, again, idle)
    records.update(1000.0 + 2 * PAUSE, {JOB: Sums({"rows": 12})}, idle)
    sent = records.records[JOB].to_message()
    assert (sent["start"], sent["end"]) == (1000.0, 1000.0 + 2 * PAUSE)
    assert sent["sums"][0][3] == {"rows": 5}
    assert sent["stages"][0][4] == {"idle": 0.0}


def test_a_long_read_is_no_pause():
    """It is counted when it has ended; until then nothing seems to run."""
    records = JobRecords()
    records.update(10.0, {JOB: Sums({"started": 1}, {"read": 9.0})}, {})
    later = Sums({"started": 2}, {"read": 9.0 + 3 * PAUSE}, {"partitions": 1})
    records.update(10.0 + 3 * PAUSE, {JOB: later}, {})
    sent = records.records[JOB].to_message()
    assert (sent["start"], sent["sums"][0][3]) == (1.0, {"started": 2})


def test_a_job_is_as_old_as_its_threads_say():
    """The first heartbeat came after seconds of imports."""
    records = JobRecords()
    loading = Sums({"started": 2}, {"load": 16.0}, {"partitions": 2})
    records.update(100.0, {JOB: loading}, {})
    assert records.records[JOB].start == 92.0
    done = Sums({"started": 4}, {"forward": 8.0})
    records.update(100.0, {JOB._replace(job="other"): done}, {})
    assert records.records[JOB._replace(job="other")].start == 98.0


def test_processes_and_hosts_are_counted_once() -> None:
    sums = ClusterSums()
    sums.update("inproc://10.0.0.1/77/1", host_message(cpu=5, busy=9, cores=2))
    sums.update("inproc://10.0.0.1/77/2", host_message(cpu=6, busy=10, cores=2))
    assert sums.host() == {"processes": 1, "cpu": 6, "busy": 10, "cores": 2}
    sums = ClusterSums()
    sums.update("tcp://10.0.0.1:1", host_message(cpu=5, busy=9, cores=2))
    sums.update("tcp://10.0.0.1:2", host_message(cpu=6, busy=10, cores=2))
    sums.update("tcp://10.0.0.2:2", host_message(cpu=1, busy=2, cores=4))
    assert sums.host() == {"processes": 3, "cpu": 12, "busy": 12, "cores": 6}


def host_message(**host: float) -> Message:
    return Message(0.0, {}, [], host)
