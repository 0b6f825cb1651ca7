"""A stage: its queue on the event loop, and its thread."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
import torch

from dask_infer.device.device import Accelerator
from dask_infer.faults.deadline import abandoned_threads
from dask_infer.pipeline.messages.group_state import Target
from dask_infer.pipeline.messages.microbatch import LOST, Failure, Header, Payload
from dask_infer.pipeline.worker.stage_server import StageServer

from ..stub_scheduler import on_loop
from ..stub_worker import stage_of, stage_spec, workers_of


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
        stage = StageServer(stage_spec(), loop, "tcp://worker", call=None)
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
        header = Header(
            Target("instance", 0, (("tcp://worker",),)), "tcp://feeder", 0, 1, rows=2
        )
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


def header(epoch=0, number=0):
    return Header(Target("instance", epoch, (("worker",),)), "feeder", number, 1)


@on_loop
async def test_microbatches_run_in_their_order():
    (comms,) = workers_of("worker", wire=False)
    order = []
    async with stage_of(comms, stage_spec(), order.append) as stage:
        work = [
            stage.within_epoch(0, stage.run(header(), Payload(values={0: n})))
            for n in range(20)
        ]
        await asyncio.gather(*work)
    assert order == list(range(20))


@on_loop
async def test_a_newer_epoch_gets_a_window_of_its_own():
    (comms,) = workers_of("worker", wire=False)
    async with stage_of(comms, stage_spec(), lambda x: x) as stage:
        async with stage.window.admit():
            old = stage.window
            waits = asyncio.create_task(stage.within_epoch(0, asyncio.sleep(60)))
            await asyncio.sleep(0)
            assert await stage.within_epoch(1, asyncio.sleep(0, "done")) == "done"
            assert await waits == LOST
            assert await stage.within_epoch(0, asyncio.sleep(0)) == LOST
        assert (old.inside, stage.window.inside, stage.epoch) == (0, 0, 1)


@on_loop
async def test_a_model_that_exits_fails_a_microbatch_and_serves_on():
    def model(x):
        if x < 0:
            raise SystemExit("the model gives up")
        return x

    (comms,) = workers_of("worker", wire=False)
    async with stage_of(comms, stage_spec(), model) as stage:
        failed = await stage.run(header(), Payload(values={0: -1}))
        assert isinstance(failed, Failure)
        assert "SystemExit: the model gives up" in str(failed.exception())
        passed = await stage.run(header(), Payload(values={0: 1}))
        assert passed.values == {0: 1}
