"""Torch threads of one forward."""

import threading

import torch

from dask_infer.device.device import Device, use_cpu_threads


def test_threads_are_set_in_the_calling_thread():  # DI-17
    seen = []

    def run():
        use_cpu_threads(2)
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [2]


def test_the_clock_of_the_cpu_counts_the_calling_thread_alone():
    clock, burned = Device(torch.device("cpu")).clock, []

    def burn():
        start = clock()
        while clock() - start < 0.05:
            pass
        burned.append(clock() - start)

    start = clock()
    thread = threading.Thread(target=burn)
    thread.start()
    thread.join()
    assert clock() - start < burned[0]
