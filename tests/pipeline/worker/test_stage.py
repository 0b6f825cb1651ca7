"""One stage's thread, and the handlers of its worker."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
import torch

from dask_infer.device.device import Accelerator
from dask_infer.faults.deadline import abandoned_threads
from dask_infer.pipeline.messages.microbatch import Failure, Header, Payload
from dask_infer.pipeline.worker import microbatch_comms as module
from dask_infer.pipeline.worker.stage import Stage


@pytest.mark.parametrize("hangs", [False, True])
def test_a_forward_that_hangs_is_left_behind_without_the_device(hangs):
    # The abandoned thread had taken the device, and never gave it back.
    device, release = Accelerator(torch.device("cpu")), threading.Event()
    holders = []

    def call(args, kwargs, method=None):
        holders.append(device.exclusive().locked())
        if hangs:
            release.wait(30)
        return args[0] * 2

    replica = SimpleNamespace(
        device=device, part=None, loaded=SimpleNamespace(call=call),
        spec=SimpleNamespace(name="model"), count=lambda rows: None,
    )  # fmt: skip

    async def run():
        loop = asyncio.get_running_loop()
        stage = Stage("group", 0, 1, 0, 2, loop, "tcp://worker", "model-0")
        wanted = threading.Event()
        wanted.set()
        serving = asyncio.create_task(
            asyncio.to_thread(
                stage.serve,
                replica,
                SimpleNamespace(cpu_threads=1),
                0.2 if hangs else 30,
                wanted.is_set,
            )
        )
        payload = Payload(values={0: torch.ones(2)})
        header = Header("group", 0, ("tcp://worker",), "tcp://feeder", 0, 1, rows=2)
        answer = await stage.run(header, payload)
        wanted.clear()
        return answer, await serving

    answer, stuck = asyncio.run(run())
    assert holders == [True]
    assert stuck == isinstance(answer, Failure) == hangs
    assert not device.exclusive().locked()
    release.set()
    for thread in abandoned_threads():
        thread.join(30)


def test_a_worker_has_one_switchboard_however_many_threads_ask(monkeypatch):
    # Two at once made two, and the handlers were those of the one that was dropped.
    made, both = [], threading.Barrier(8)

    class Slow:
        def __init__(self, worker):
            made.append(self)
            release.wait(0.2)

    class Worker:
        pass

    release, worker, found = threading.Event(), Worker(), []
    monkeypatch.setattr(module, "MicrobatchComms", Slow)

    def ask():
        both.wait(30)
        found.append(module.comms_of(worker))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == len(set(found)) == 1
