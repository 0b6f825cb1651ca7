"""A microbatch between workers: its header, its payload, and what may fail."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dask_infer.errors import pickled
from dask_infer.pipeline.messages.wire import Message, copied, pack, unpack


class Target(NamedTuple):
    """An instance of a group to which a microbatch can be sent."""

    name: str
    epoch: int
    #: Addresses of its stages, in order.
    route: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """Where a microbatch goes and what is called; travels with every message.

    Stages need no configuration: the header has the route.
    """

    #: The instance; of several `candidates` the first.
    target: Target
    #: Address of the feeder's worker.
    feeder: str
    #: The microbatch at its feeder, and how often it was sent before: answers to older
    #: attempts are ignored.
    number: int
    attempt: int
    rows: int = 0
    #: Method of a whole model to call; None for the model itself.
    method: str | None = None
    #: The columns, pickled, that a whole model's output becomes; None for all of it.
    outputs: bytes | None = None
    #: Instances of which the first one's worker chooses; empty where it is chosen.
    candidates: tuple[Target, ...] = ()

    def to(self, target: Target) -> Header:
        """Return the header for one of the candidates."""
        return replace(self, target=target, candidates=())


@dataclass(frozen=True)
class Payload:
    """Values by name, as a message of another process or already native."""

    message: Message | None = None
    values: dict[Any, Any] = field(default_factory=dict)

    def open(self) -> dict[Any, Any]:
        """Return the values, in memory that the receiver may write into."""
        return copied(self.values) if self.message is None else unpack(self.message)

    def packed(self) -> Message:
        """Return the message."""
        return pack(self.values) if self.message is None else self.message


@dataclass(frozen=True)
class Failure:
    """What went wrong with a microbatch in a stage; travels to its feeder."""

    #: The pickled exception.
    error: bytes
    #: Stage that raised it, of how many, and the worker.
    stage: int
    stages: int
    worker: str
    #: Traceback as text: frames do not travel.
    trace: str
    out_of_memory: bool = False

    @classmethod
    def of(
        cls, error: BaseException, stage: int, stages: int, worker: str, memory: bool
    ) -> Failure:
        """Describe an exception and its causes."""
        trace = "".join(traceback.format_exception(error))
        if not isinstance(error, Exception):
            # What ends a thread would end the event loop of the feeder's worker.
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(pickled(error), stage, stages, worker, trace, memory)

    def exception(self) -> BaseException:
        """Return the stage's exception; its first cause says where it was raised."""
        error: BaseException = pickle.loads(self.error)
        last = error
        while last.__cause__ is not None:
            last = last.__cause__
        last.__cause__ = RemoteTraceback(self)
        return error


class RemoteTraceback(Exception):
    """The traceback of a stage, as text, so that the cause is seen with the error."""

    def __init__(self, failure: Failure) -> None:
        where = f"stage {failure.stage} of {failure.stages} on worker {failure.worker}"
        super().__init__(f"\n\nin {where}:\n{failure.trace}")
        self.failure = failure


class Lost(Exception):
    """The instance changed, or a worker is gone: the microbatch must be sent again."""
