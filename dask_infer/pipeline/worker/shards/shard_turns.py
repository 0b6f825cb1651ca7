"""The order of microbatches in a stage of several shards; on the event loop.

The first shard of a stage numbers its microbatches and sends them to the others, which
run them in that order: messages may overtake each other. Numbers start anew with each
epoch. What was numbered is run, also where no caller waits for it any more: the others
would wait for a turn that was left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Turns whose answers are kept, for calls that are made again.
KEPT = 256


class ShardTurns(Generic[T]):
    """The turns of one epoch."""

    def __init__(self) -> None:
        self._given = 0
        self._next = 0
        self._early: dict[int, T] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"<ShardTurns {self._given} given, {self._next} taken>"

    def number(self) -> int:
        """Return the number of the next microbatch; asked by the first shard alone."""
        self._given += 1
        return self._given - 1

    def answer(self, turn: int) -> asyncio.Future[Any] | None:
        """Return the answer of a turn that was taken; None for a new one."""
        return self._answers.get(turn)

    def take(self, turn: int, item: T, answer: asyncio.Future[Any]) -> list[T]:
        """Take a microbatch; return those whose turn it is, in order."""
        self._answers[turn] = answer
        self._answers.pop(turn - KEPT, None)
        self._early[turn] = item
        due = []
        while self._next in self._early:
            due.append(self._early.pop(self._next))
            self._next += 1
        return due

    async def keep(self, work: Coroutine[Any, Any, R]) -> R:
        """Do work to its end, also where the caller is cancelled meanwhile."""
        self._tasks.add(task := asyncio.ensure_future(work))
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def end(self) -> None:
        """Cancel what is kept, with the epoch."""
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # else asyncio logs it as never retrieved
