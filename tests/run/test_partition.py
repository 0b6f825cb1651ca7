"""The loop of a partition, on a runner whose outputs come when they are waited for."""

import itertools

import pytest

from tests.run.runner_checks import OrderedRunner, feed

N = 100
DOUBLED = list(range(0, 2 * N, 2))


@pytest.mark.parametrize("window", [1, 2, 6])
def test_the_window_is_filled_and_never_exceeded(window):  # PP-9
    runner = OrderedRunner(window)
    assert list(feed(runner)["y"]) == DOUBLED
    assert runner.peak == window
    assert not runner.in_flight


@pytest.mark.parametrize("window", [1, 2, 6])
@pytest.mark.parametrize("most", [1, 3, 9])
@pytest.mark.parametrize("late", [False, True])
def test_rows_run_once_each_whatever_is_in_flight(window, most, late):  # DI-09
    runner = OrderedRunner(window, most=most, late=late)
    assert list(feed(runner)["y"]) == DOUBLED
    assert sum(runner.order) == N
    assert max(runner.order) <= most


def test_batches_are_compared_by_the_clock_of_the_runner():
    runner, seen = OrderedRunner(), []
    ticks = itertools.count(step=7)
    runner.clock = lambda: next(ticks)
    runner.size.settled = False
    runner.size.observe = lambda rows, seconds: seen.append((rows, seconds))
    feed(runner)
    assert seen == [(10, 7)] * 10


def test_any_number_of_batches_in_flight_may_run_out_of_memory():
    # Each was collected while the one before was handled: 1,000 frames deep.
    line = OrderedRunner(window=10**6, size=2, most=1, late=True)
    assert feed(line, 2000)["y"].tolist() == [2 * n for n in range(2000)]
