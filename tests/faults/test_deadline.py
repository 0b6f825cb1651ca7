"""Deadlines: the caller goes on, the thread is accounted for."""

import contextlib
import contextvars
import gc
import os
import threading
import time
import weakref

import dask
import pytest

from dask_infer import PartitionError
from dask_infer.faults import deadline
from dask_infer.faults.deadline import DeadlineExceeded, abandoned_threads, within


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


def test_a_thread_that_hangs_as_others_are_counted_counts(monkeypatch):
    class Ended(threading.Thread):
        def is_alive(self):
            deadline._abandoned.add(threading.current_thread())
            return False

    monkeypatch.setattr(deadline, "_abandoned", {Ended()})
    abandoned_threads()
    assert abandoned_threads() == [threading.current_thread()]


def test_no_more_threads_than_allowed_are_left_behind():  # BM-22
    release = threading.Event()
    with dask.config.set({"infer.errors.max-abandoned-threads": 2}):
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                within(0.05, release.wait, what="forward")
        with pytest.raises(PartitionError, match=r"2 threads.*max-abandoned-threads"):
            within(30, lambda: 7, what="forward")
        stuck = abandoned_threads()
        release.set()
        for thread in stuck:
            thread.join(30)
        assert within(30, lambda: 7, what="forward") == 7


def test_an_error_does_not_keep_what_the_work_held():  # DI-10
    alive = []

    class Tensor:
        pass

    def work():
        tensor = Tensor()
        alive.append(weakref.ref(tensor))
        raise MemoryError

    gc.disable()
    try:
        with contextlib.suppress(MemoryError):
            within(30, work, what="forward")
        assert alive[0]() is None
    finally:
        gc.enable()


AMBIENT = contextvars.ContextVar("AMBIENT", default="lost")


def test_work_sees_the_callers_context_variables():
    token = AMBIENT.set("here")
    try:
        assert within(30, AMBIENT.get, what="forward") == "here"
        within(30, lambda: AMBIENT.set("changed"), what="forward")
        assert AMBIENT.get() == "here"
    finally:
        AMBIENT.reset(token)


def test_a_caller_keeps_one_thread_until_it_hangs():
    release = threading.Event()
    first, second = (
        within(30, threading.current_thread, what="forward") for _ in range(2)
    )
    assert first is second
    with pytest.raises(DeadlineExceeded):
        within(0.05, release.wait, what="forward")
    assert abandoned_threads() == [first]
    assert within(30, threading.current_thread, what="forward") is not first
    release.set()
    first.join(30)


def test_callers_have_threads_of_their_own_which_end_when_idle():
    used, both = [], threading.Barrier(2)

    def call():
        used.append(within(30, lambda: (both.wait(30), threading.current_thread())[1],
                           what="forward"))  # fmt: skip

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert len(set(used)) == 2
    for thread in used:
        thread.join(30)
        assert not thread.is_alive()


def test_work_that_comes_as_the_thread_ends_is_done(monkeypatch):
    monkeypatch.setattr("dask_infer.faults.deadline.IDLE", 0.001)
    for number in range(200):
        time.sleep(0.001 + number % 7 * 1e-5)
        assert within(30, lambda number=number: number, what="forward") == number


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_a_thread_of_its_own():
    within(5, int, what="a call")
    child = os.fork()
    if child == 0:
        try:
            os._exit(within(2, lambda: 7, what="a call"))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
