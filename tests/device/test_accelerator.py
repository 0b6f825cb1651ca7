"""An accelerator's rule, shown on the CPU: one forward at a time."""

import threading
import time

import torch

from dask_infer.device.device import Accelerator, Device


def most_at_once(device):
    """How many of four racing threads were ever inside a forward together."""
    inside, most, lock = 0, 0, threading.Lock()
    start = threading.Barrier(4)

    def run():
        nonlocal inside, most
        start.wait()
        with device.forward(threads=1):
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
    device = Accelerator(torch.device("cpu"))
    entered, release = threading.Event(), threading.Event()

    def stuck():
        with device.forward(threads=1):
            entered.set()
            release.wait(30)

    thread = threading.Thread(target=stuck, daemon=True)
    thread.start()
    entered.wait(30)
    device.abandon_forward()
    with device.forward(threads=1):
        assert thread.is_alive()
    release.set()
    thread.join(30)
