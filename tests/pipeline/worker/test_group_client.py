"""A group's feeders: they wait until it serves, send, and send again after a loss."""

import asyncio
import contextlib
import threading
from dataclasses import replace

import pytest
import torch

from dask_infer.errors import PartitionError, PlacementError
from dask_infer.pipeline.messages.microbatch import Payload, RemoteTraceback
from dask_infer.pipeline.worker import group_client as module
from dask_infer.pipeline.worker.group_client import GroupClient

from ..stub_scheduler import StubScheduler, on_loop, settle, spec_of
from ..stub_worker import stage_of, workers_of

ONE = Payload(values={0: torch.ones(1)})


@contextlib.asynccontextmanager
async def feeding(*addresses, model=lambda x: x + 1, **options):
    """Run stages on workers as their tasks would; yield the cluster and a client."""
    spec, peers = spec_of(**options), {}
    async with (
        StubScheduler(*addresses) as cluster,
        contextlib.AsyncExitStack() as stages,
    ):
        peers["tcp://scheduler"] = cluster
        cluster.peers = peers
        feeder, *others = workers_of("feeder", *addresses, wire=True, peers=peers)
        comms = dict(zip(addresses, others, strict=True))

        async def serve():
            while True:
                for key, address in cluster.running_stages().items():
                    stage, _ = cluster.submitted[key]
                    known, own = comms[address].stages, stage.layers.stage
                    if (stage.instance, own) not in known and address in peers:
                        await stages.enter_async_context(
                            stage_of(comms[address], stage, model)
                        )
                        await cluster.serve(key)
                await asyncio.sleep(0.001)

        serving = asyncio.create_task(serve())
        client = GroupClient(feeder, spec)
        cluster.start_task("user")
        try:
            yield cluster, client
        finally:
            serving.cancel()
            for user in list(client.users):
                await client.close(user)
            await settle()


@on_loop
async def test_it_waits_until_the_group_serves_and_sends():
    async with feeding("a", "b") as (_, client):
        state = await client.open("user")
        assert state.status == "ready"
        results = await asyncio.gather(*(client.send(ONE, 1) for _ in range(20)))
        assert [result.open()[0].item() for result in results] == [2.0] * 20
        assert not client.comms.in_flight and not client._sent


@on_loop
async def test_a_group_that_cannot_be_placed_raises_why():
    async with feeding("a", resources=(("GPU", 1.0),)) as (_, client):
        with pytest.raises(PlacementError, match="GPU=1"):
            await client.open("user")
        assert not client.users and client._watching is None


@on_loop
async def test_what_a_stage_raises_is_raised_with_its_place():
    def fails(x):
        raise ValueError("beyond the range")

    async with feeding("a", model=fails) as (_, client):
        await client.open("user")
        with pytest.raises(ValueError, match="beyond the range") as raised:
            await client.send(ONE, 1)
        assert isinstance(raised.value.__cause__, RemoteTraceback)


@on_loop
async def test_after_a_loss_what_was_in_flight_is_sent_again():
    hangs, calls = threading.Event(), []

    def model(x):
        calls.append(1)
        if len(calls) == 1:
            hangs.wait(30)
        return x + 1

    options = {"model": model, "replicas": 1, "grace": 60}
    async with feeding("a", "b", **options) as (cluster, client):
        await client.open("user")
        sending = asyncio.create_task(client.send(ONE, 1))
        while not calls:
            await asyncio.sleep(0.001)
        (lost,) = cluster.running_stages().values()
        del cluster.peers[lost]
        cluster.remove_worker(lost)
        result = await sending
        hangs.set()
        assert result.open()[0].item() == 2.0
        assert len(calls) == 2
        (instance,) = client.state.instances
        assert (instance.epoch, instance.route == (lost,)) == (1, False)


@on_loop
async def test_what_was_taken_is_not_sent_again_where_the_group_changes():
    release, calls = threading.Event(), []

    def model(x):
        calls.append(1)
        release.wait(30)
        return x + 1

    async with feeding("a", model=model) as (cluster, client):
        await client.open("user")
        sending = asyncio.create_task(client.send(ONE, 1))
        while not calls:
            await asyncio.sleep(0.001)
        version = client.state.version
        cluster.table.notify(next(iter(cluster.table)), "it changed")
        while client.state.version == version:
            await asyncio.sleep(0.001)
        release.set()
        await sending
        assert len(calls) == 1


@on_loop
async def test_an_offer_that_an_update_withdraws_is_not_fetched_any_more():
    # Cancelling the call takes a moment: what was fetched then ran on two instances.
    async with feeding("a", "b", replicas=2) as (_, client):
        await client.open("user")
        while len(client.state.serving) < 2:
            await asyncio.sleep(0.001)
        both, fetch, fetched = client.state, client.comms.handlers["fetch"], []
        client.state = replace(both, instances=both.instances[:1])

        async def grows(header, payload):
            client._update(replace(both, version=client.state.version + 1))
            answer = await fetch(header, payload)
            fetched.append(answer["status"])
            return answer

        client.comms.handlers["fetch"] = grows
        result = await client.send(ONE, 1)
        assert result.open()[0].item() == 2.0
        assert fetched == ["lost", "done"]


@on_loop
async def test_a_released_group_is_opened_again_by_what_is_sent():
    async with feeding("a", idle=0) as (cluster, client):
        await client.open("user")
        cluster.table.release(next(iter(cluster.table)), "for this test")
        while client.state.status != "released":
            await asyncio.sleep(0.001)
        result = await client.send(ONE, 1)
        assert result.open()[0].item() == 2.0


@on_loop
async def test_stages_that_cannot_be_reached_are_named(monkeypatch):
    monkeypatch.setattr(module, "PAUSES", (0.001, 0.001))
    async with feeding("a") as (cluster, client):
        await client.open("user")
        object.__setattr__(client.spec.timeouts, "stall", 0.01)
        del cluster.peers["a"]
        with pytest.raises(PartitionError, match="its stages on a, but worker feeder"):
            await client.send(ONE, 1)


@on_loop
async def test_the_last_user_ends_the_watching():
    async with feeding("a") as (cluster, client):
        cluster.start_task("other")
        await client.open("user")
        await client.open("other")
        await client.close("user")
        assert client._watching is not None
        await client.close("other")
        assert client._watching is None


def test_of_many_instances_one_dispatcher_chooses_among_sixteen():
    (client, ready) = GroupClient.__new__(GroupClient), tuple(
        module.Target(f"{n}", 0, ((f"{n}",),)) for n in range(40)
    )  # fmt: skip
    client._sent = module.Counter()
    parts = set()
    for _ in range(3):
        part = client._candidates(ready)
        client._sent[part[0].name] += 1
        parts.add(part)
    assert sorted(map(len, parts)) == [13, 13, 14]
    assert set().union(*parts) == set(ready)
