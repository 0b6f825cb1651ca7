"""Activities of a thread, counted without an object that is passed on."""

from __future__ import annotations

import contextvars
import threading
import time

from dask_infer.metrics.recorder import Recorder, add, meter
from dask_infer.metrics.sums import Label

LABEL = Label("Linear-1a2b3c4d", None, "5e6f7a8b")


def recorder() -> Recorder:
    return Recorder("tcp://worker", LABEL, "other")


def test_nothing_is_counted_where_nothing_is_recorded():
    with meter("encode"):
        add("rows", 3)


def test_activities_divide_the_time_of_the_thread():
    began = time.perf_counter()
    one = recorder()
    with one:
        with meter("wait"):
            time.sleep(0.01)
            with meter("forward"):
                time.sleep(0.02)
        time.sleep(0.01)
    sums = one.sums()
    took = time.perf_counter() - began
    assert set(sums.seconds) == {"wait", "forward", "other"}
    assert sums.seconds["forward"] >= 0.02
    # An inner meter's time is not the outer one's: the parts are the whole.
    assert 0.04 <= sum(sums.seconds.values()) <= took


def test_an_activity_is_seen_while_it_goes_on():
    one = recorder()
    with one, meter("forward"):
        time.sleep(0.02)
        first = one.sums().seconds["forward"]
        assert first >= 0.02
        time.sleep(0.01)
        assert one.sums().seconds["forward"] >= first + 0.01


def test_an_error_ends_the_meter_and_is_raised():
    one = recorder()
    with one:
        try:
            with meter("encode"):
                raise ValueError
        except ValueError:
            pass
        assert one.lap[0] == "other"


def test_counts_add_up():
    one = recorder()
    with one:
        add("rows", 3)
        add("rows", 4)
        add("halvings")
    assert one.sums().counts == {"rows": 7, "halvings": 1}


def test_a_thread_beside_counts_under_a_name_of_its_own():
    one = recorder()

    def beside() -> None:
        with meter("encode"):
            time.sleep(0.01)

    with one:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=[beside])
        thread.start()
        thread.join()
    assert one.sums().counts["encode_beside"] >= 0.01
    assert "encode" not in one.sums().seconds


def test_an_inner_recorder_takes_over_and_gives_back():
    outer, inner = recorder(), recorder()
    with outer:
        with inner:
            add("rows")
        add("rows", 2)
    assert (outer.sums().count("rows"), inner.sums().count("rows")) == (2, 1)


def test_what_other_threads_read_never_falls():
    one = recorder()
    done = threading.Event()
    fell = []

    def read() -> None:
        before: dict[str, float] = {}
        while not done.is_set():
            now = one.sums().seconds
            fell.extend(a for a in before if now.get(a, 0) < before[a] - 1e-9)
            before = now

    reader = threading.Thread(target=read)
    reader.start()
    with one:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            with meter("encode"):
                pass
            with meter("wait"), meter("forward"):
                pass
    done.set()
    reader.join()
    assert not fell
