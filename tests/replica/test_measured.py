"""What jobs took, as the next one's plan finds it."""

from __future__ import annotations

import dask
import pytest

from dask_infer.metrics.sums import Sums
from dask_infer.replica import measured, remembered
from dask_infer.replica.measured import (
    ForwardTimes,
    ThreadTimes,
    is_observed,
    load_key,
    observe_load,
    observe_partition,
    rate_key,
    recall_each,
    rows_key,
)
from dask_infer.replica.remembered import recall, remember
from dask_infer.spec import Blob, Inputs, Job, ModelSpec, Outputs


@pytest.fixture(autouse=True)
def a_store_of_its_own(tmp_path, monkeypatch):
    place = tmp_path / "store"
    place.mkdir(mode=0o700)
    monkeypatch.setattr(measured, "_times", {})
    with dask.config.set({"infer.store.path": str(place)}):
        yield place


def job(key="k" * 8, **options):
    model = ModelSpec(key, "model", "module")
    return Job(model, Inputs((), ()), Outputs(()), Blob("code", b""), **options)


def observed(each, wall=1.0, cpu=1.0, waited=0.0, rows=100, forward=0.8):
    seconds = {"forward": forward, "encode": wall - forward, "load": 7.0, "wait": 9.0}
    sums = Sums({"rows": rows}, seconds)
    observe_partition(each, sums, ThreadTimes(wall, cpu, waited), "cpu")
    return recall(rows_key(each.rate_key, "cpu"))


def test_seconds_of_a_row_leave_out_loads_and_waits_for_others():
    assert observed(job()) == pytest.approx(
        {"forward": 8e-3, "prepare": 2e-3, "cores": 1.0}
    )


def test_time_without_a_core_is_not_the_jobs():
    state = observed(job(), wall=4.0, cpu=1.0, waited=3.0, forward=3.2)
    assert state == pytest.approx({"forward": 8e-3, "prepare": 2e-3, "cores": 1.0})


def test_a_job_that_sleeps_needs_no_core():
    state = observed(job(), cpu=0.1)
    assert state == pytest.approx({"forward": 8e-3, "prepare": 2e-3, "cores": 0.1})


def test_reading_prepares_rows_and_is_not_among_the_times_of_the_thread():
    sums = Sums({"rows": 100}, {"read": 3.0, "load": 5.0, "forward": 1.0})
    observe_partition(job(), sums, ThreadTimes(1.0, 0.5, 0.0), "cpu")
    assert recall(rows_key(job().rate_key, "cpu")) == pytest.approx(
        {"forward": 1e-2, "prepare": 3e-2, "cores": 0.5}
    )


def test_forwards_of_a_group_count_as_if_they_ran_here():
    # A second of this thread, of which 0.7 s were waits for a group.
    sums = Sums({"rows": 100}, {"encode": 0.2, "decode": 0.1, "wait": 0.7})
    spent, elsewhere = ThreadTimes(1.0, 0.3, 0.0), ForwardTimes(0.5, 0.1)
    observe_partition(job(), sums, spent, "cuda", elsewhere)
    assert recall(rows_key(job().rate_key, "cuda")) == pytest.approx(
        {"forward": 5e-3, "prepare": 3e-3, "cores": 0.4 / 0.8}
    )


def test_the_first_partition_is_forgotten_and_later_ones_count_more():
    observed(job(), wall=100.0, forward=99.0)
    assert observed(job())["forward"] == pytest.approx(8e-3)
    observed(job(), forward=0.4)
    assert observed(job(), forward=0.4)["forward"] < 5e-3


def test_after_the_first_partitions_of_a_job_one_an_interval_is_observed(monkeypatch):
    monkeypatch.setattr(measured, "INTERVAL", 1e9)
    for _ in range(measured.FIRST):
        assert is_observed(job(), "cpu")
        observed(job())
    assert not is_observed(job(), "cpu")
    assert is_observed(job(), "cuda") and is_observed(job("other"), "cpu")
    monkeypatch.setattr(measured, "INTERVAL", 0.0)
    assert is_observed(job(), "cpu")


def test_layouts_share_their_times_and_other_requests_do_not():
    assert job().rate_key == job(timeout=3.0).rate_key
    others = [job("other"), job(dtype="bfloat16"), job(method="x"), job(batch_size=3)]
    assert len({each.rate_key for each in [job(), *others]}) == 5


def test_loads_of_large_models_show_the_rate_of_the_host():
    small, large = ModelSpec("s", "s", "module"), ModelSpec("l", "l", "module")
    observe_load(large, None, "cpu", 2**30, 2.0)
    observe_load(small, None, "cpu", 1000, 1.0)
    known = recall_each([load_key("s", None, "cpu"), rate_key("cpu"), "nothing"])
    assert known[load_key("s", None, "cpu")] == {"bytes": 1000, "seconds": 1.0}
    assert known[rate_key("cpu")] == {"bytes": 2**30, "seconds": 2.0}
    assert "nothing" not in known and known["cores"] >= 1


def test_no_more_files_are_kept_than_a_number(a_store_of_its_own, monkeypatch):
    monkeypatch.setattr(remembered, "KEPT", 8)
    for number in range(30):
        remember(f"key {number}", {"number": number})
    assert len(list(a_store_of_its_own.glob("learned/*.json"))) <= 8
    assert recall("key 29") == {"number": 29}


def test_a_real_thread_measures_its_wait_for_a_core():
    before = ThreadTimes.now()
    sum(range(10**6))
    spent = ThreadTimes.now().since(before)
    assert 0 < spent.cpu <= spent.wall + 0.1
    assert 0 <= spent.waited <= spent.wall + 0.1
