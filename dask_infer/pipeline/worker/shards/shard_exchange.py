"""What the shards of a stage exchange during forwards, over the cluster's own comms.

Every shard runs the same microbatches in the same order; the first shard numbers them:
their *turns*. A forward gives its part of a tensor to the other shards and waits for
theirs. Invariants:

1. A part is known by epoch, turn and number of the exchange, so what comes late is
   ignored, and what comes early is kept.
2. A shard whose forward fails reports that to the others: none waits for it.
3. A wait ends with the epoch, and where the stage is not wanted any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeAlias

import torch

from dask_infer.metrics.recorder import meter
from dask_infer.model.split.shards import Collective
from dask_infer.pipeline.messages.microbatch import Header, StageLost

#: Seconds between two looks whether the stage is still wanted.
POLL_SECONDS = 0.1

#: The parts of one exchange, by shard.
Parts: TypeAlias = "dict[int, torch.Tensor]"


class Turn(NamedTuple):
    """One microbatch of a stage, equal on all its shards."""

    epoch: int
    number: int


class ShardPart(NamedTuple):
    """What a shard gives to another one."""

    #: The instance and the stage, and the shard that gives.
    instance: str
    stage: int
    shard: int
    turn: Turn
    #: Number of the exchange in its turn.
    number: int
    #: None where the shard failed in this turn.
    tensor: torch.Tensor | None


class ShardFailed(Exception):
    """Another shard's forward failed, so this one cannot go on."""


#: Sends a part to an address, until it is there.
Send: TypeAlias = Callable[[str, ShardPart], Coroutine[Any, Any, None]]


class ShardExchange:
    """The parts that came from other shards, and how parts get to them.

    Parameters
    ----------
    instance, stage, shard
        Which shard this is.
    loop
        The worker's event loop, on which `send` runs.
    """

    def __init__(
        self,
        instance: str,
        stage: int,
        shard: int,
        loop: asyncio.AbstractEventLoop,
        send: Send,
    ) -> None:
        self.instance, self.stage, self.shard = instance, stage, shard
        self._loop, self._send = loop, send
        self._parts: defaultdict[tuple[Turn, int], Parts] = defaultdict(dict)
        self._failed: set[Turn] = set()
        #: The first turn that may still exchange.
        self._first = Turn(-1, 0)
        self._changed = threading.Condition()
        self._sends: set[asyncio.Future[None]] = set()
        #: Whether the stage is still wanted; asked by waits.
        self.wanted: Callable[[], bool] = lambda: True

    def __repr__(self) -> str:
        return f"<ShardExchange of shard {self.shard}, {len(self._parts)} open>"

    # --- on the event loop -------------------------------------------------------

    def receive(self, part: ShardPart) -> None:
        """Take what another shard gives."""
        with self._changed:
            if part.turn < self._first:
                return
            if part.tensor is None:
                self._failed.add(part.turn)
            else:
                self._parts[part.turn, part.number][part.shard] = part.tensor
            self._changed.notify_all()

    def begin_epoch(self, epoch: int) -> None:
        """End all turns of older epochs, what waits in them and is sent for them."""
        self._begin(Turn(epoch, 0))
        for sending in self._sends:
            sending.cancel()

    # --- in the stage's thread ---------------------------------------------------

    def begin(self, header: Header) -> TurnCollective:
        """Return what the forward of a microbatch exchanges tensors by."""
        return TurnCollective(self, header)

    def give(
        self, others: list[str], turn: Turn, number: int, tensor: torch.Tensor | None
    ) -> None:
        """Send a part to other shards; returns at once."""
        part = ShardPart(self.instance, self.stage, self.shard, turn, number, tensor)

        def start() -> None:
            for address in others:
                task = asyncio.ensure_future(self._send(address, part))
                self._sends.add(task)
                task.add_done_callback(self._sends.discard)

        self._loop.call_soon_threadsafe(start)

    def wait(self, turn: Turn, number: int, others: int) -> Parts:
        """Return the parts of an exchange, once all others gave theirs.

        Raises
        ------
        ShardFailed
            If another shard failed in this turn.
        StageLost
            If the turn or its epoch ended.
        """
        with self._changed:
            while True:
                if turn < self._first or not self.wanted():
                    raise StageLost
                parts = self._parts[turn, number]
                if len(parts) == others:
                    return self._parts.pop((turn, number))
                if turn in self._failed:
                    raise ShardFailed("another shard of the stage failed")
                self._changed.wait(POLL_SECONDS)

    def end(self, turn: Turn) -> None:
        """End a turn: what comes for it is ignored, what waits in it ends."""
        self._begin(Turn(turn.epoch, turn.number + 1))

    def _begin(self, turn: Turn) -> None:
        with self._changed:
            self._first = max(self._first, turn)
            for key in [key for key in self._parts if key[0] < self._first]:
                del self._parts[key]
            self._failed = {turn for turn in self._failed if turn >= self._first}
            self._changed.notify_all()


class TurnCollective(Collective):
    """The exchanges of one shard in one turn."""

    def __init__(self, exchange: ShardExchange, header: Header) -> None:
        addresses = header.target.shards(exchange.stage)
        self.shard, self.shards = exchange.shard, len(addresses)
        self._others = [a for n, a in enumerate(addresses) if n != self.shard]
        self._exchange = exchange
        self._turn = Turn(header.target.epoch, header.turn)
        self._number = 0

    def exchange(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts of all shards, in their order."""
        self._number += 1
        with meter("transfer"):
            sent = part.detach().to("cpu").contiguous()
            self._exchange.give(self._others, self._turn, self._number, sent)
            parts = self._exchange.wait(self._turn, self._number, len(self._others))
            parts[self.shard] = part
            return [parts[shard].to(part.device) for shard in range(self.shards)]

    def end(self, *, failed: bool) -> None:
        """End the turn; inform the other shards where it failed here."""
        if failed:
            self._exchange.give(self._others, self._turn, 0, None)
        self._exchange.end(self._turn)
