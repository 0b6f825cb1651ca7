"""The microbatches that the shards of a stage run together, over the cluster's comms.

The first shard numbers them, their *turns*, and sends them to the others, which run
them in that order: messages may overtake each other. A forward gives its part of a
tensor to the other shards and waits for theirs. Invariants:

1. What was numbered is run, also where no caller waits for it any more: the others
   would wait for a turn that was left out.
2. A part is known by its turn and the number of the exchange, so what comes late is
   ignored, and what comes early is kept.
3. A shard whose forward fails reports that to the others: none waits for it.
4. A wait ends with the epoch, and where the stage is not wanted any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import torch

from dask_infer.metrics.recorder import meter
from dask_infer.model.split.shards import Collective
from dask_infer.pipeline.messages.microbatch import StageLost
from dask_infer.spec import StageLayers

#: Turns whose answers are kept, for calls that are made again.
KEPT = 256
#: Seconds between two looks whether the stage is still wanted.
POLL_SECONDS = 0.1


class ShardFailed(Exception):
    """Another shard's forward failed, so this one cannot go on."""


class ShardTurns:
    """The turns of one epoch; numbers start anew with the next one."""

    def __init__(self) -> None:
        self._given = self._next = 0
        self._early: dict[int, Any] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        #: By turn and exchange the parts that came, by shard.
        self._parts: defaultdict[tuple[int, int], dict[int, torch.Tensor]]
        self._parts = defaultdict(dict)
        #: Turns in which another shard failed.
        self._failed: set[int] = set()
        #: The first turn that may still exchange.
        self._first: float = 0
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return f"<ShardTurns {self._given} given, {self._next} taken>"

    # --- on the event loop -------------------------------------------------------

    def number(self) -> int:
        """Return the number of the next microbatch; asked by the first shard alone."""
        self._given += 1
        return self._given - 1

    def answer(self, turn: int) -> asyncio.Future[Any] | None:
        """Return the answer of a turn that was taken; None for a new one."""
        return self._answers.get(turn)

    def take(self, turn: int, item: Any, answer: asyncio.Future[Any]) -> list[Any]:
        """Take a microbatch; return those whose turn it is, in order."""
        self._answers[turn] = answer
        self._answers.pop(turn - KEPT, None)
        self._early[turn] = item
        due = []
        while self._next in self._early:
            due.append(self._early.pop(self._next))
            self._next += 1
        return due

    def receive(self, turn: int, given: Mapping[str, Any]) -> None:
        """Take what another shard gives: its part, or None where it failed."""
        with self._changed:
            if turn < self._first:
                return
            if given["part"] is None:
                self._failed.add(turn)
            else:
                self._parts[turn, given["number"]][given["shard"]] = given["part"]
            self._changed.notify_all()

    def begin_at(self, turn: float) -> None:
        """Ignore what comes for earlier turns, and end what waits in them."""
        with self._changed:
            self._first = max(self._first, turn)
            for key in [key for key in self._parts if key[0] < self._first]:
                del self._parts[key]
            self._failed = {turn for turn in self._failed if turn >= self._first}
            self._changed.notify_all()

    def end(self) -> None:
        """End all turns, with the epoch."""
        self.begin_at(inf)

    # --- in the stage's thread ---------------------------------------------------

    def wait(
        self, turn: int, number: int, others: int, wanted: Callable[[], bool]
    ) -> dict[int, torch.Tensor]:
        """Return the parts of an exchange, once all others gave theirs.

        Raises `StageLost` where the turn or its epoch ended.
        """
        with self._changed:
            while True:
                if turn < self._first or not wanted():
                    raise StageLost
                if len(self._parts[turn, number]) == others:
                    return self._parts.pop((turn, number))
                if turn in self._failed:
                    raise ShardFailed("another shard of the stage failed")
                self._changed.wait(POLL_SECONDS)


class TurnCollective(Collective):
    """The exchanges of one shard in one turn.

    `give` sends what `ShardTurns.receive` takes to all other shards; it returns at
    once.
    """

    def __init__(
        self,
        turns: ShardTurns,
        turn: int,
        layers: StageLayers,
        give: Callable[[dict[str, Any]], None],
        wanted: Callable[[], bool],
    ) -> None:
        self.shard, self.shards = layers.shard, layers.shards
        self._turns, self._turn, self._give, self._wanted = turns, turn, give, wanted
        self._number = 0

    def exchange(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts of all shards, in their order."""
        self._number += 1
        number, others = self._number, self.shards - 1
        with meter("transfer"):
            sent = part.detach().to("cpu").contiguous()
            self._give({"shard": self.shard, "number": number, "part": sent})
            parts = self._turns.wait(self._turn, number, others, self._wanted)
            parts[self.shard] = part
            return [parts[shard].to(part.device) for shard in range(self.shards)]

    def end(self, *, failed: bool) -> None:
        """End the turn; inform the other shards where it failed here."""
        if failed:
            self._give({"part": None})
        self._turns.begin_at(self._turn + 1)
