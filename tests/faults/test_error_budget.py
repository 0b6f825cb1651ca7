"""When failed rows are no longer the cause: the rules as tables."""

import pytest

from dask_infer.faults.error_budget import ErrorBudget


def budget(rows, share, failures, message="forward: ValueError: bad"):
    """A partition of which so many rows failed, one after the other."""
    errors = ErrorBudget(rows, share)
    for row in range(failures):
        errors.fail(1, str(row), message if message else f"row {row} is bad")
    return errors


@pytest.mark.parametrize(
    ("rows", "share", "failed", "stops"),
    [
        (100, 0.5, 50, False),
        (100, 0.5, 51, True),
        (100, 0.1, 10, False),
        (100, 0.1, 11, True),
        (100, 0.0, 3, False),  # fewer than four failures say nothing
        (100, 0.0, 4, True),
        (9, 0.5, 8, False),  # too few rows for a share
        (10, 0.5, 6, True),
        (100, 1.0, 100, False),
    ],
)
def test_more_than_the_share(rows, share, failed, stops):
    reason = budget(rows, share, failed, message=None).stops()
    assert bool(reason) == stops
    if stops:
        assert f"{failed} of {rows} rows" in reason
        assert "infer.errors.max-fraction" in reason


@pytest.mark.parametrize(
    ("rows", "message", "stops"),
    [(3, "same", False), (4, "same", True), (9, "same", True), (9, None, False)],
)
def test_all_rows_alike(rows, message, stops):
    assert bool(budget(rows, 0.9, rows, message).stops()) == stops
    assert budget(rows, 1.0, rows, message).stops() is None


def test_a_batch_that_fails_whole_is_one_failure():
    errors = ErrorBudget(1000, 0.5)
    errors.fail(1000, "0", "bad")
    assert errors.stops() is None


@pytest.mark.parametrize(("share", "draws"), [(0.1, 6), (0.5, 20), (0.9, 132)])
def test_rows_are_drawn_once_to_be_sure_to_a_million(share, draws):
    errors = budget(10_000, share, 4)
    assert errors.draws() == draws
    assert errors.draws() == 0


def test_no_row_is_drawn_without_need():
    assert budget(10_000, 0.5, 3).draws() == 0
    assert budget(10_000, 0.5, 4, message=None).draws() == 0
    assert budget(10_000, 1.0, 4).draws() == 0
    assert budget(50, 0.5, 4).draws() == 0
    predicted = budget(10_000, 0.5, 4)
    predicted.succeeded += 1
    assert predicted.draws() == 0


def test_first_messages_come_with_their_counts():
    errors = ErrorBudget(100, 1.0)
    for row in range(10):
        errors.fail(1, f"r{row}", f"message {row % 5}")
    assert errors.first == "row r0: message 0"
    assert "row r1: message 1 (2 rows)" in errors.messages()
    assert errors.messages().endswith("other messages (4 rows)")
