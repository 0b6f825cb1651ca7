"""An accelerator's rule, shown on the CPU: one forward at a time."""

import threading
import time

import pytest
import torch

from dask_infer.device.device import Accelerator, Device
from dask_infer.faults.deadline import DeadlineExceeded, within


def most_at_once(device):
    """How many of four racing threads were ever inside a forward together."""
    inside, most, lock = 0, 0, threading.Lock()
    start = threading.Barrier(4)

    def run():
        nonlocal inside, most
        start.wait()
        with device.exclusive():
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.05)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most


def test_an_accelerator_runs_one_forward_at_a_time():  # DI-08
    assert most_at_once(Accelerator(torch.device("cpu"))) == 1


def test_the_cpu_runs_as_many_as_there_are_threads():
    assert most_at_once(Device(torch.device("cpu"))) == 4


def test_a_stuck_forward_does_not_keep_the_device():  # BM-24
    device, release = Accelerator(torch.device("cpu")), threading.Event()
    waiting = threading.Event()
    ran = []

    def next_in_line():
        waiting.set()
        with device.exclusive():
            ran.append(True)

    with pytest.raises(DeadlineExceeded), device.exclusive():
        thread = threading.Thread(target=next_in_line)
        thread.start()
        waiting.wait(30)
        within(0.1, lambda: release.wait(30), what="forward")
    thread.join(30)
    assert ran
    release.set()


def test_waiting_for_the_device_is_no_part_of_a_forward():
    device = Accelerator(torch.device("cpu"))

    def forward():
        with device.exclusive():
            return within(0.5, lambda: time.sleep(0.2), what="forward")

    threads = [threading.Thread(target=forward) for _ in range(4)]
    failures = []
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert failures == []
