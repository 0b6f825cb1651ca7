"""Where a partition runs: threads, memory, and workers that come and go."""

import gc
import weakref

import dask
import pytest
from dask.system import CPU_COUNT
from distributed import Client

from dask_infer.replica import worker_place as module
from dask_infer.replica.worker_place import Place, current_place


def test_free_bytes_are_those_below_the_memory_limit():
    assert Place("local", 1, lambda: 0).free_bytes() is None
    assert Place("w", 1, lambda: 0, memory_limit=1).free_bytes() == 0
    assert 0 < Place("w", 1, lambda: 0, memory_limit=2**50).free_bytes() < 2**50


@pytest.mark.parametrize(
    ("cores", "forwards", "threads"),
    [(16, 4, 4), (16, 16, 1), (2, 8, 1), (8, 3, 2), (1, 1, 1), (4, 0, 4)],
)
def test_forwards_share_the_cores(monkeypatch, cores, forwards, threads):
    monkeypatch.setattr(module, "CPU_COUNT", cores)
    assert module._threads(forwards) == threads


def threads_here(_):
    return current_place().cpu_threads


def test_children_of_the_processes_scheduler_share_the_cores(monkeypatch):
    monkeypatch.setattr(module.multiprocessing, "parent_process", lambda: object())
    assert threads_here(0) == 1
    with dask.config.set(num_workers=1):
        assert threads_here(0) == CPU_COUNT


@pytest.mark.parametrize("error", [OSError, TimeoutError, RuntimeError])
def test_a_scheduler_that_does_not_answer_fails_no_partition(monkeypatch, error):
    def lost(worker):
        raise error

    monkeypatch.setattr(module, "_forwards_on_host", lost)
    with Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as client:
        assert client.submit(threads_here, 0).result() == CPU_COUNT


def test_a_place_keeps_no_worker_alive():
    class Memory:
        memory_limit, memory_pause_fraction = 100, 0.8

    class Worker:
        address, memory_manager = "tcp://w", Memory

    worker = Worker()
    place, alive = module._place_of(worker, 1), weakref.ref(worker)
    del worker
    gc.collect()
    assert alive() is None
    assert place.used_bytes() > 0
