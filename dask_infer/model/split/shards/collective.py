"""How the shards of a stage exchange tensors, whatever carries the messages.

All shards run the same code on the same batch, so they make the same exchanges in the
same order.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch

from dask_infer.errors import OutputError


class Collective(ABC):
    """The exchanges of one shard during one forward."""

    #: Number of this shard, and how many there are.
    shard: int
    shards: int
    #: How weights would better be divided, by their ids; None where no trial asks.
    wishes: dict[int, tuple[str, Any]] | None = None

    @abstractmethod
    def exchange(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Give every other shard a tensor; return those of all, in their order.

        What is returned is on the device of `part`, and must not be written to.
        """

    def sum(self, part: torch.Tensor) -> torch.Tensor:
        """Return the sum over all shards, to the bit the same one on each."""
        first, *others = self.exchange(part)
        total = first.clone()
        for other in others:
            total += other
        return total


class _Current(threading.local):
    def __init__(self) -> None:
        self.collective: Collective | None = None
        #: Empty tensors that count the changes of tensors which were put together.
        self.counters: list[torch.Tensor] = []


_current = _Current()


@contextlib.contextmanager
def exchanging(collective: Collective | None) -> Iterator[None]:
    """Let the forward in this thread exchange tensors by `collective`.

    Raises
    ------
    OutputError
        If the forward changed a divided tensor in place: only a copy of it changed.
    """
    before, _current.collective = _current.collective, collective
    counters = _current.counters = []
    try:
        yield
    finally:
        _current.collective, _current.counters = before, []
    if any(counter._version for counter in counters):
        refuse_change()


def watched(join: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return a tensor put together, of which changes in place will be found out."""
    with torch.inference_mode(False):  # changes of its tensors are not counted
        whole = join()
        # Shares the count of changes, through views as well, but not the memory.
        counter = whole.detach()
        counter.data = whole.new_empty(0)
    _current.counters.append(counter)
    return whole


def refuse_change() -> NoReturn:
    """Raise the error of a model that changes a divided tensor in place."""
    raise OutputError(
        "its code changes in place a weight, or a result, that is divided among "
        'shards; use parallel="data", or "pipeline" without shards'
    )


def current_collective() -> Collective:
    """Return what the forward in this thread exchanges tensors by."""
    if _current.collective is None:
        raise RuntimeError("a divided tensor is read outside of a stage's forward")
    return _current.collective


class Meeting:
    """Where the threads of `ThreadCollective`s meet."""

    def __init__(self, shards: int) -> None:
        #: Exchanges so far.
        self.count = 0
        self.parts = [torch.empty(0)] * shards
        self.barrier = threading.Barrier(shards)


class ThreadCollective(Collective):
    """Exchanges between threads of one process, which share a `meeting`."""

    def __init__(self, meeting: Meeting, shard: int) -> None:
        self.meeting, self.shard, self.shards = meeting, shard, len(meeting.parts)

    def exchange(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Return the parts of all threads, once all are there."""
        meeting = self.meeting
        meeting.parts[self.shard] = part
        if meeting.barrier.wait() == 0:
            meeting.count += 1
        found = list(meeting.parts)
        meeting.barrier.wait()
        return found
