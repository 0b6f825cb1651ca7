"""Workers without processes, whose calls pass through Dask's serialisation."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import torch
from distributed.protocol.core import dumps, loads

from dask_infer.device.device import Accelerator
from dask_infer.pipeline.messages.stage_spec import StageSpec
from dask_infer.pipeline.worker import microbatch_comms
from dask_infer.pipeline.worker.microbatch_comms import MicrobatchComms, comms_of
from dask_infer.pipeline.worker.stage_server import StageServer
from dask_infer.spec import StageLayers

from .stub_scheduler import spec_of


class StubWorker:
    """A worker that reaches others by their addresses, as long as they are there."""

    def __init__(self, address: str, peers: dict[str, Any]) -> None:
        self.address, self.peers = address, peers
        self.loop = SimpleNamespace(asyncio_loop=asyncio.get_running_loop())
        self.handlers: dict[str, Any] = {}
        self.status = SimpleNamespace(name="running")
        self.state = SimpleNamespace(tasks={})
        peers[address] = self

    @property
    def scheduler(self) -> Any:
        return self.rpc("tcp://scheduler")

    def rpc(self, address: str) -> Any:
        return _Calls(self.peers, address)


class _Calls:
    def __init__(self, peers: dict[str, Any], address: str) -> None:
        self.peers, self.address = peers, address

    def __getattr__(self, operation: str) -> Any:
        async def call(**message: Any) -> Any:
            await asyncio.sleep(0)
            if self.address not in self.peers:
                raise OSError(f"cannot connect to {self.address}")
            handler = self.peers[self.address].handlers[operation]
            answer = await handler(**loads(dumps(message)))
            return loads(dumps(answer))

        return call


@contextlib.asynccontextmanager
async def stage_of(
    comms: MicrobatchComms,
    spec: StageSpec,
    model: Callable[[Any], Any],
    timeout: float = 30,
) -> AsyncIterator[StageServer]:
    """Serve a stage of a chain in a thread."""

    def call(args: Any, kwargs: Any) -> Any:
        return {name: model(value) for name, value in args[0].items()}

    replica = SimpleNamespace(
        device=Accelerator(torch.device("cpu")), part=SimpleNamespace(chain="chain"),
        loaded=SimpleNamespace(call=call), spec=SimpleNamespace(name="model"),
        count=lambda rows: None,
    )  # fmt: skip
    place: Any = SimpleNamespace(cpu_threads=1)
    stage, ended = (
        StageServer(spec, comms.loop, comms.address, comms.call),
        threading.Event(),
    )
    comms.open(stage)
    serving = asyncio.create_task(
        asyncio.to_thread(
            stage.serve, replica, place, timeout, lambda: not ended.is_set()
        )
    )
    try:
        yield stage
    finally:
        comms.close(stage)
        ended.set()
        await serving


def workers_of(*addresses: str, wire: bool, peers: Any = None) -> list[MicrobatchComms]:
    """Return the comms of new workers; with `wire` they never call each other here."""
    peers = {} if peers is None else peers
    found = [comms_of(StubWorker(address, peers)) for address in addresses]
    # They live as long as their workers do.
    for comms in found:
        comms.kept = comms.worker()  # type: ignore[attr-defined]
        if wire:
            del microbatch_comms._by_address[comms.address]
    return found


def stage_spec(index: int = 0, stages: int = 1, epoch: int = 0, **options: Any) -> Any:
    layers = StageLayers(None, index, index + 1, index)
    return StageSpec(spec_of(**options), "instance", stages, epoch, layers)
