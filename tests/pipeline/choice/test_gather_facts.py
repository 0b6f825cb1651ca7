"""Facts of a job, from remembered times and from the workers that are there."""

from __future__ import annotations

import dask
import pytest
import torch

from dask_infer.device.device import Device
from dask_infer.pipeline.choice import gather_facts
from dask_infer.pipeline.choice.gather_facts import FLOPS, Gatherer
from dask_infer.replica.measured import rows_key
from dask_infer.spec import AutoSpec, GroupSpec, Layout, ModelSpec

GB = 10**9
AUTO = AutoSpec(
    GroupSpec(ModelSpec("key", "model", "module", nbytes=4 * GB), Layout()),
    rows=1000,
    partitions=4,
    rate_key="rate",
)


class Accelerator(Device):
    """One GPU of 16 GB, as this process would have it."""

    one_at_a_time = True

    def memory_limit(self):
        return 12 * GB


def worker(**resources):
    return {"resources": resources, "nthreads": 1, "memory_limit": 8 * GB}


def remembered(**seconds):
    times = {"prepare": 0.0, "cores": 1.0}
    return {
        rows_key("rate", kind): {"forward": each, **times}
        for kind, each in seconds.items()
    }


def test_this_process_is_as_fast_and_as_large_as_its_accelerator(monkeypatch):
    device = Accelerator(torch.device("cuda"))
    monkeypatch.setattr(gather_facts, "resolve_device", lambda name: device)
    (here,) = Gatherer(AUTO, {}, {}).gather().workers
    assert here.speed == FLOPS["cuda"] / FLOPS["cpu"]
    assert (here.memory, here.one_at_a_time) == (12 * GB, True)
    known = remembered(cpu=1.0, cuda=0.1)
    (here,) = Gatherer(AUTO, {}, known).gather().workers
    assert here.speed == pytest.approx(10)
    with dask.config.set({"infer.replica.memory-limit": "1 GB"}):
        (here,) = Gatherer(AUTO, {}, {}).gather().workers
    assert here.memory == GB


def test_a_forward_that_took_no_time_says_nothing_of_speed():
    workers = {"tcp://a:1": worker(), "tcp://b:1": worker(GPU=1)}
    facts = Gatherer(AUTO, workers, remembered(cpu=0.0, cuda=0.1)).gather()
    assert [each.speed for each in facts.workers] == [1, FLOPS["cuda"] / FLOPS["cpu"]]
