"""Sums of a process stay bounded, and lose nothing that was counted."""

from __future__ import annotations

from dask_infer.metrics.recorder import add, meter
from dask_infer.metrics.sums import Label, Sums, from_message, to_message
from dask_infer.metrics.totals import EARLIER, Totals, recording, totals

WORKER = "tcp://test-totals"


def run(into: Totals, label: Label, rows: int = 1, worker: str = WORKER) -> None:
    from dask_infer.metrics.recorder import Recorder

    recorder = Recorder(worker, label)
    into.open(recorder)
    with recorder:
        add("rows", rows)


def rows_of(sums: dict[Label, Sums]) -> int:
    return sum(each.count("rows") for each in sums.values())


def test_a_recorder_is_seen_while_it_is_open_and_after():
    label = Label("Linear-1", None, "job")
    with recording(WORKER, label) as recorder:
        recorder.levels["partitions"] = 1
        with meter("encode"):
            add("rows", 5)
            seen = totals.snapshot(WORKER)[label]
            assert seen.counts == {"rows": 5}
            assert seen.levels == {"partitions": 1}
    kept = totals.snapshot(WORKER)[label]
    assert kept.counts == {"rows": 5}
    assert not kept.levels  # of the moment only
    totals.forget(WORKER)
    assert totals.snapshot(WORKER) == {}


def test_workers_of_one_process_count_by_themselves():
    into = Totals()
    run(into, Label("Linear-1"), 3, "tcp://a")
    run(into, Label("Linear-1"), 4, "tcp://b")
    assert rows_of(into.snapshot("tcp://a")) == 3


def test_ten_thousand_jobs_take_the_room_of_a_few():
    into = Totals()
    for number in range(10_000):
        run(into, Label("Linear-1", None, f"job-{number}"))
    sums = into.snapshot(WORKER)
    assert len(sums) == 9
    assert sums[Label("Linear-1")].count("rows") == 9_992
    assert rows_of(sums) == 10_000


def test_ten_thousand_models_take_the_room_of_a_hundred():
    into = Totals()
    for number in range(10_000):
        run(into, Label(f"Linear-{number}", None, "job"))
    sums = into.snapshot(WORKER)
    assert len(sums) <= 108
    assert rows_of(sums) == 10_000
    assert sums[Label(EARLIER)].count("rows") > 9_800


def test_a_job_that_goes_on_stays_while_others_come_and_go():
    into = Totals()
    steady = Label("Linear-1", None, "steady")
    for number in range(100):
        run(into, steady)
        run(into, Label("Linear-1", None, f"job-{number}"))
    assert into.snapshot(WORKER)[steady].count("rows") == 100


def test_sums_survive_the_message():
    sums = {Label("a", 1, ""): Sums({"rows": 3}, {"forward": 0.5}, {"window": 4})}
    message = to_message(sums)
    # A newer version may send more with each line.
    assert from_message([[*message[0], "what comes later"]]) == sums
