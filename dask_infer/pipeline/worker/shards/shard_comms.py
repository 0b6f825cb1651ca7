"""The calls between the shards of a stage, on the event loops of their workers.

first shard   follow to each other one       a microbatch, under the turn's number
any shard     part to each other one         of a tensor, as the forward needs it
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from distributed import Worker

from dask_infer.pipeline.messages.microbatch import Failure, Header, Payload, StageLost
from dask_infer.pipeline.messages.wire import pack, unpack
from dask_infer.pipeline.worker.answers import DONE, Answer, failed
from dask_infer.pipeline.worker.shards.shard_exchange import ShardPart, Turn
from dask_infer.pipeline.worker.stage_server import StageServer

#: Seconds before a call is made again whose connection failed.
PAUSE = 0.1

Stages = Mapping[tuple[str, int], StageServer]


class ShardComms:
    """The shards on one worker, and the handlers that reach them.

    Parameters
    ----------
    stages
        What the worker serves, by instance and stage.
    call
        Calls the handler of a microbatch on another worker.
    worker
        Returns the worker; None once it is gone.
    """

    def __init__(
        self,
        stages: Stages,
        call: Callable[[str, str, Header, Payload], Coroutine[Any, Any, Answer]],
        worker: Callable[[], Worker | None],
    ) -> None:
        self._stages, self._call, self._worker = stages, call, worker

    async def run(
        self, stage: StageServer, header: Header, payload: Payload
    ) -> Payload | Failure:
        """Run a microbatch on all shards; return what the first one made of it."""
        # What has a number must be run, also where the caller is cancelled meanwhile.
        return await stage.turns.keep(self._run(stage, header, payload))

    async def _run(
        self, stage: StageServer, header: Header, payload: Payload
    ) -> Payload | Failure:
        header = replace(header, turn=stage.turns.number())
        calls = [
            asyncio.ensure_future(self._lead(stage, address, header, payload))
            for address in header.target.shards(stage.index)[1:]
        ]
        try:
            result = await stage.run(header, payload)
            answers = await asyncio.gather(*calls)
        finally:
            for call in calls:
                call.cancel()
        if any(answer["status"] == "lost" for answer in answers):
            raise StageLost
        failures = [result] if isinstance(result, Failure) else []
        failures += [Failure(**a["failure"]) for a in answers if "failure" in a]
        # Where one shard fails the others do, too: it has the cause.
        return next((f for f in failures if not f.of_other), result)

    async def _lead(
        self, stage: StageServer, address: str, header: Header, payload: Payload
    ) -> Answer:
        """Have another shard run a microbatch; it must not miss a turn."""
        while True:
            try:
                return await self._call(address, "follow", header, payload)
            except OSError:
                if stage.is_past(header.target.epoch):
                    raise StageLost from None
                await asyncio.sleep(PAUSE)

    async def follow(
        self, stage: StageServer, header: Header, payload: Payload
    ) -> Answer:
        """Run a microbatch in its turn; the values stay here."""
        result = await stage.turns.keep(stage.run(header, payload))
        return failed(result) if isinstance(result, Failure) else DONE

    async def send(self, address: str, part: ShardPart) -> None:
        """Send a part to another shard, until it has it or the epoch ends."""
        stage = self._stages.get((part.instance, part.stage))
        about = {**part._asdict(), "turn": list(part.turn)}
        about["tensor"] = None if part.tensor is None else pack({0: part.tensor})
        while stage is not None:
            worker = self._worker()
            if worker is None:
                return
            try:
                await worker.rpc(address).infer_part(**about)
                return
            except OSError:
                if stage.is_past(part.turn.epoch):
                    return
                await asyncio.sleep(PAUSE)

    async def receive(self, **about: Any) -> Answer:
        """Take a part that another shard sent."""
        message, turn = about["tensor"], Turn(*about["turn"])
        tensor = None if message is None else unpack(message)[0]
        part = ShardPart(**{**about, "turn": turn, "tensor": tensor})
        stage = self._stages.get((part.instance, part.stage))
        if stage is not None and stage.exchange is not None:
            stage.exchange.receive(part)
        return DONE
