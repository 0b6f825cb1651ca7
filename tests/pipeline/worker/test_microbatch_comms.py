"""Calls between feeders and stages, as messages and within one process."""

import asyncio
import pickle
import threading
from types import SimpleNamespace

import pytest
import torch

from dask_infer.pipeline.messages.group_state import Target
from dask_infer.pipeline.messages.microbatch import Failure, Header, Payload
from dask_infer.pipeline.worker import microbatch_comms as module
from dask_infer.pipeline.worker.microbatch_comms import InFlight

from ..stub_scheduler import on_loop, settle
from ..stub_worker import stage_of, stage_spec, workers_of


def sent(feeder, route, value, epoch=0):
    """Put a microbatch in flight at its feeder; return it and its header."""
    in_flight = InFlight(Payload(values={0: value}), rows=1)
    feeder.in_flight[in_flight.number] = in_flight
    target = Target("instance", epoch, tuple((each,) for each in route))
    return in_flight, Header(target, feeder.address, in_flight.number, 0)


def offer(feeder, header):
    return feeder.call(header.target.route[0], "offer", header)


@pytest.mark.parametrize("wire", [True, False])
def test_values_pass_all_stages_and_come_back_to_the_feeder(wire):
    @on_loop
    async def run():
        feeder, one, two = workers_of("feeder", "one", "two", wire=wire)
        async with (
            stage_of(one, stage_spec(0, 2), lambda x: x + 1),
            stage_of(two, stage_spec(1, 2), lambda x: x * 10),
        ):
            value = torch.arange(3, dtype=torch.bfloat16)
            in_flight, header = sent(feeder, ["one", "two"], value)
            assert await offer(feeder, header) == {"status": "done"}
            (result,) = in_flight.outputs.result().open().values()
        assert result.dtype == torch.bfloat16
        assert result.tolist() == [10, 20, 30]
        assert in_flight.taken == header.target

    run()


@pytest.mark.parametrize("wire", [True, False])
def test_an_error_comes_back_with_its_stage_and_worker(wire):
    def fails(x):
        raise ValueError("beyond the range")

    @on_loop
    async def run():
        feeder, one, two = workers_of("feeder", "one", "two", wire=wire)
        async with (
            stage_of(one, stage_spec(0, 2), lambda x: x),
            stage_of(two, stage_spec(1, 2), fails),
        ):
            in_flight, header = sent(feeder, ["one", "two"], torch.ones(1))
            answer = await offer(feeder, header)
        assert answer["status"] == "failed" and not in_flight.outputs.done()
        error = Failure(**answer["failure"]).exception()
        assert "beyond the range" in str(error)
        assert "in stage 1 of 2 on worker two" in str(error.__cause__)

    run()


@on_loop
async def test_what_waits_for_admission_is_not_transferred():
    release = threading.Event()
    feeder, one = workers_of("feeder", "one", wire=True)
    async with stage_of(one, stage_spec(), lambda x: release.wait(30) and x) as stage:
        batches = [sent(feeder, ["one"], torch.ones(1)) for _ in range(5)]
        calls = [asyncio.create_task(offer(feeder, header)) for _, header in batches]
        while stage.window.inside < stage.window.size:
            await asyncio.sleep(0.001)
        await settle()
        assert [b.taken is not None for b, _ in batches] == [True] * 2 + [False] * 3
        release.set()
        await asyncio.gather(*calls)
    assert (stage.window.inside, stage.window.peak) == (0, 0)  # a new one, closed
    assert all(b.outputs.done() for b, _ in batches)


@on_loop
async def test_of_several_instances_the_idlest_gets_the_microbatch():
    feeder, one, two = workers_of("feeder", "one", "two", wire=True)
    release = threading.Event()
    other = stage_spec()
    async with (
        stage_of(one, stage_spec(), lambda x: release.wait(30) and x),
        stage_of(two, other, lambda x: release.wait(30) and x),
    ):
        targets = tuple(Target("instance", 0, ((route,),)) for route in ("one", "two"))
        batches = [sent(feeder, ["one"], torch.ones(1)) for _ in range(4)]
        calls = []
        for _, header in batches:
            among = Header(
                targets[0], header.feeder, header.number, 0, candidates=targets
            )
            calls.append(asyncio.create_task(offer(feeder, among)))
        while not all(b.taken for b, _ in batches):
            await asyncio.sleep(0.001)
        release.set()
        await asyncio.gather(*calls)
    taken = [b.taken.route[0] for b, _ in batches]
    assert sorted(taken) == ["one", "one", "two", "two"]


@on_loop
async def test_what_no_stage_waits_for_is_lost():
    feeder, _ = workers_of("feeder", "one", wire=True)
    _, header = sent(feeder, ["one"], torch.ones(1))
    assert await offer(feeder, header) == {"status": "lost"}


@on_loop
async def test_answers_to_an_older_attempt_are_ignored():
    (feeder,) = workers_of("feeder", wire=False)
    in_flight, header = sent(feeder, ["one"], torch.ones(1))
    in_flight.attempt = 1
    assert await feeder.call("feeder", "fetch", header) == {"status": "lost"}
    await feeder.call("feeder", "outputs", header, Payload(values={0: 1}))
    assert not in_flight.outputs.done()


@on_loop
async def test_a_newer_epoch_ends_what_is_older():
    release = threading.Event()
    feeder, one = workers_of("feeder", "one", wire=True)
    async with stage_of(one, stage_spec(), lambda x: release.wait(30) and x) as stage:
        old, header = sent(feeder, ["one"], torch.ones(1))
        waits = asyncio.create_task(offer(feeder, header))
        while not stage.window.inside:
            await asyncio.sleep(0.001)
        new, header = sent(feeder, ["one"], torch.ones(1), epoch=1)
        other = asyncio.create_task(offer(feeder, header))
        assert await waits == {"status": "lost"}
        release.set()
        assert await other == {"status": "done"}
        _, header = sent(feeder, ["one"], torch.ones(1), epoch=0)
        assert await offer(feeder, header) == {"status": "lost"}
    assert new.outputs.done() and not old.outputs.done()


@on_loop
async def test_a_stage_that_closes_answers_what_waits():
    release = threading.Event()
    feeder, one = workers_of("feeder", "one", wire=True)
    async with stage_of(one, stage_spec(), lambda x: release.wait(30) and x):
        calls = [
            asyncio.create_task(offer(feeder, sent(feeder, ["one"], torch.ones(1))[1]))
            for _ in range(4)
        ]
        await settle()
        one.close(next(iter(one.stages.values())))
        assert await asyncio.gather(*calls) == [{"status": "lost"}] * 4
        release.set()


@pytest.mark.parametrize(
    ("state", "asks"), [("ready", True), ("constrained", True), ("executing", False)]
)
def test_one_feeder_leaves_its_thread_to_a_stage_without_one(state, asks, monkeypatch):
    @on_loop
    async def run():
        (comms,) = workers_of("worker", wire=False)
        comms.worker().state.tasks[stage_spec().key] = SimpleNamespace(state=state)
        assert [comms.stage_needs_thread() for _ in range(2)] == [asks, False]
        # Another task may have taken the first thread.
        monkeypatch.setattr(module, "LEFT_SECONDS", 0)
        assert comms.stage_needs_thread() is asks

    run()


@on_loop
async def test_a_worker_without_the_handlers_loses_the_microbatch():
    feeder, one = workers_of("feeder", "one", wire=True)

    async def unknown(**message):
        return None

    one.worker().handlers["infer_microbatch"] = unknown
    _, header = sent(feeder, ["one"], torch.ones(1))
    assert await offer(feeder, header) == {"status": "lost"}


def test_headers_are_small():
    target = Target("model-0123456789ab-1", 3, (("tcp://127.0.0.1:40000",),) * 4)
    assert len(pickle.dumps(Header(target, target.route[0], 7, 1, 64))) < 400


def test_a_worker_has_one_object_however_many_threads_ask(monkeypatch):
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
