"""Failed batches, as tables of what fails and how many forwards that may cost."""

import logging
import math

import numpy as np
import pandas as pd
import pytest

from dask_infer import PartitionError
from dask_infer.run.recovery import MOST_TIMEOUTS
from tests.run.runner_checks import OrderedRunner, feed


def missing(columns):
    return np.flatnonzero(columns["y"].isna()).tolist()


@pytest.mark.parametrize(
    ("bad", "forwards"), [(0, 21), (1, 21), (511, 13), (512, 20), (1023, 12)]
)
def test_one_bad_row_of_1024_costs_at_most_21_forwards(bad, forwards):  # BM-17
    runner = OrderedRunner(size=1024, bad=[bad])
    assert missing(feed(runner, 1024, on_error="null")) == [bad]
    assert len(runner.sent) == forwards <= 2 * int(math.log2(1024)) + 1


@pytest.mark.parametrize(
    ("rows", "size", "bad", "forwards"),
    [
        (1, 10, [0], 1),
        (2, 10, [1], 3),
        (8, 8, [], 1),
        (8, 8, [0], 7),
        (8, 8, [2], 6),  # rows 0 and 1 pass, so rows 2 and 3 are not run together
        (8, 8, [2, 3], 6),
        (8, 8, [0, 7], 10),
        (8, 1, [4], 8),  # alone already
        (16, 4, [5], 4 + 5),  # the batch after it is smaller
    ],
)
def test_forwards_that_a_search_costs(rows, size, bad, forwards):  # BM-17
    runner = OrderedRunner(size=size, bad=bad)
    assert missing(feed(runner, rows, on_error="null")) == bad
    assert len(runner.sent) == forwards


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("late", [False, True])
def test_bad_rows_are_found_while_others_are_in_flight(window, late):
    bad = [0, 13, 14, 77, 99]
    runner = OrderedRunner(window, size=16, bad=bad, late=late)
    columns = feed(runner, on_error="quarantine")
    assert missing(columns) == bad
    assert columns["y"].dropna().tolist() == [2 * x for x in range(100) if x not in bad]
    errors = pd.Series(columns["infer_error"])
    assert errors.index[errors.notna()].tolist() == bad
    assert set(errors.dropna()) == {"forward: ValueError: bad"}
    assert sum(runner.order) == 100 - len(bad)


def test_bad_rows_and_little_memory_at_once():
    runner = OrderedRunner(2, size=64, bad=[5, 50], most=9)
    assert missing(feed(runner, on_error="null")) == [5, 50]
    assert max(runner.order) <= 9
    assert runner.size.size <= 9  # for the partitions that follow


def test_a_row_that_does_not_fit_is_left_out():  # DI-10
    class Tight(OrderedRunner):
        def _failure(self, batch):
            return MemoryError() if 7 in batch.args[0] else None

    columns = feed(Tight(size=8), on_error="quarantine")
    assert missing(columns) == [7]
    assert columns["infer_error"][7].startswith("forward: MemoryError: ; one row does")


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("on_error", ["raise", "null"])
def test_a_row_does_not_fail_for_the_memory_of_others(late, on_error):  # DI-10
    class JoinedOutput(OrderedRunner):
        """Row 7 does not fit beside others, however small they are."""

        def _failure(self, batch):
            return MemoryError() if self.in_flight and 7 in batch.args[0] else None

    columns = feed(JoinedOutput(3, size=1, late=late), 20, on_error=on_error)
    assert list(columns["y"]) == list(range(0, 40, 2))


@pytest.mark.parametrize("late", [False, True])
def test_a_batch_that_fits_only_alone_is_run_alone(late):
    runner = OrderedRunner(3, size=10, late=late)
    runner._failure = lambda batch: MemoryError() if runner.in_flight else None
    assert list(feed(runner, row_wise=False)["y"]) == list(range(0, 200, 2))


def test_without_row_wise_a_batch_fails_whole():
    runner = OrderedRunner(size=10, bad=[42])
    columns = feed(runner, on_error="null", row_wise=False)
    assert missing(columns) == list(range(40, 50))
    assert runner.sent == [10] * 10


def test_raise_stops_at_the_first_failure():
    runner = OrderedRunner(size=10, bad=[42])
    with pytest.raises(PartitionError, match="failed in forward of 10 rows, 40 to 49"):
        feed(runner)
    assert len(runner.sent) == 5


# --- the fault of no row -------------------------------------------------------------


def test_a_model_that_always_fails_is_found_out_early():
    runner = OrderedRunner(size=4096, bad=range(10**6))
    with pytest.raises(PartitionError, match="20 rows drawn at random") as raised:
        feed(runner, 10_000, on_error="null")
    assert isinstance(raised.value.__cause__, ValueError)
    assert len(runner.sent) <= 13 + 8 + 20


def test_rows_drawn_at_random_are_tried_in_one_window():
    beside = []

    class Watched(OrderedRunner):
        def send(self, batch, rows=None):
            beside.append(len(self.in_flight))
            return super().send(batch, rows)

    runner = Watched(30, size=4096, bad=range(10**6), late=True)
    with pytest.raises(PartitionError, match="20 rows drawn at random"):
        feed(runner, 10_000, on_error="null")
    assert beside[-20:] == list(range(20))
    assert not runner.in_flight


def test_rows_drawn_at_random_run_once_more_and_no_result_changes():
    runner = OrderedRunner(size=1000, bad=range(100))
    assert missing(feed(runner, 1000, on_error="null")) == list(range(100))


@pytest.mark.parametrize("rows", [4, 9])
def test_a_small_partition_that_fails_alike_raises(rows):
    with pytest.raises(PartitionError, match=f"all {rows} rows .* failed alike"):
        feed(OrderedRunner(bad=range(10)), rows, on_error="null")


def test_fewer_than_four_rows_may_all_fail():
    assert missing(feed(OrderedRunner(bad=range(3)), 3, on_error="null")) == [0, 1, 2]


def test_a_share_stops_the_job_and_says_what_failed():
    bad = range(0, 100, 2)
    assert missing(feed(OrderedRunner(bad=bad), on_error="null")) == list(bad)
    with pytest.raises(PartitionError, match=r"11 of 100.*share of 0\.1.*row 0: forw"):
        feed(OrderedRunner(bad=bad), on_error="null", max_errors=0.1)


def test_counts_and_the_first_error_are_logged(caplog):
    with caplog.at_level(logging.WARNING):
        feed(OrderedRunner(bad=[3, 7]), on_error="null")
    (record,) = caplog.records
    assert record.getMessage() == (
        '2 of 100 rows failed in model "double" on nowhere and are missing; first '
        "row 3: forward: ValueError: bad"
    )


# --- hangs ---------------------------------------------------------------------------


def test_one_hanging_row_of_4096_costs_four_timeouts():  # BM-23
    runner = OrderedRunner(size=4096, hangs=[1234])
    columns = feed(runner, 4096, on_error="quarantine")
    assert missing(columns) == [1234]
    assert "did not end within 1 s; raise timeout=" in columns["infer_error"][1234]
    assert runner.timeouts == 4
    assert len(runner.sent) == 1 + 3 * 16


def test_a_partition_that_hangs_often_is_not_searched_without_bound():  # BM-24
    hangs = range(0, 4096, 256)
    runner = OrderedRunner(size=256, hangs=hangs)
    columns = feed(runner, 4096, on_error="null", max_errors=1.0)
    assert {*hangs} <= {*missing(columns)}
    # Three for each of the first rows, then each of the 13 batches left fails whole.
    assert runner.timeouts <= MOST_TIMEOUTS + len(hangs)


def test_every_forward_hangs():  # BM-24
    runner = OrderedRunner(size=256, hangs=range(4096))
    with pytest.raises(PartitionError, match="9 forwards hung and none ended"):
        feed(runner, 4096, on_error="null")
    assert runner.timeouts == MOST_TIMEOUTS + 1
