"""Work timed on a machine that may be busy."""

from __future__ import annotations

import pytest

from dask_infer.model.split import clock as module
from dask_infer.model.split.clock import Clock


class Machine:
    """Clocks that a test turns, in place of the system's."""

    def __init__(self, monkeypatch):
        self.wall = self.cpu = 0.0
        self.interruptions = 0
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(module.time, "thread_time", lambda: self.cpu)
        monkeypatch.setattr(module, "_interruptions", lambda: self.interruptions)

    def work(self, clock, wall, cpu, interruptions=0):
        with clock:
            self.wall += wall
            self.cpu += cpu
            self.interruptions += interruptions


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_the_fastest_run_counts(machine):
    clock = Clock(alone=True)
    for wall in (0.003, 0.002, 0.004):
        machine.work(clock, wall, wall)
    assert clock.seconds == pytest.approx(0.002)


def test_one_undisturbed_run_is_better_than_the_cpu_time_of_others(machine):
    clock = Clock(alone=True)
    machine.work(clock, 0.05, 0.01, interruptions=2)
    machine.work(clock, 0.03, 0.01)  # the rest of it slept
    assert clock.seconds == pytest.approx(0.03)


def test_where_all_runs_are_interrupted_cpu_time_counts(machine):
    clock = Clock(alone=True)
    for cpu in (0.021, 0.02):
        machine.work(clock, 0.1, cpu, interruptions=1)
    assert clock.seconds == pytest.approx(0.02)


def test_cpu_time_of_one_thread_says_nothing_of_several(machine):
    clock = Clock(alone=False)
    for _ in range(3):
        machine.work(clock, 0.1, 0.02, interruptions=1)
    assert clock.seconds == pytest.approx(0.1)


def test_long_work_is_run_once_and_short_work_a_few_times(machine):
    for wall, runs in ((30.0, 1), (0.001, module.RUNS)):
        clock = Clock(alone=True)
        while not clock.enough:
            machine.work(clock, wall, wall)
        assert clock.runs == runs


def test_the_systems_own_clocks():
    clock = Clock(alone=True)
    while not clock.enough:
        with clock:
            sum(range(1000))
    assert 0 < clock.seconds < module.TIME_LIMIT
