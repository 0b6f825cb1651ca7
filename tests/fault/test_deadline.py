"""Deadlines: the caller goes on, the thread is accounted for."""

import threading

import pytest

from dask_infer.fault.deadline import DeadlineExceeded, abandoned_threads, within


def test_without_a_deadline_the_work_runs_in_the_calling_thread():
    assert (
        within(None, threading.current_thread, what="x") is threading.current_thread()
    )


def test_result_and_error_come_back():
    assert within(30, lambda: 7, what="seven") == 7
    with pytest.raises(KeyError, match="gone"):
        within(30, lambda: {}["gone"], what="lookup")


def test_a_hang_is_abandoned_and_counted():  # BM-22
    release = threading.Event()
    with pytest.raises(DeadlineExceeded, match=r"forward did not end within 0\.05 s"):
        within(0.05, release.wait, what="forward")
    (stuck,) = abandoned_threads()
    assert stuck.daemon
    release.set()
    stuck.join(30)
    assert abandoned_threads() == []
