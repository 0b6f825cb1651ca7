"""A microbatch on its way: what travels with it, and what comes back of it."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dask_infer.errors import pickled
from dask_infer.pipeline.messages.wire import Message, copied, pack, unpack


class Target(NamedTuple):
    """An instance of a group, as it is offered a microbatch."""

    name: str
    epoch: int
    #: Addresses of its stages, in order.
    route: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """Where a microbatch goes and what is done with it; travels with every message.

    A stage needs no configuration: the header tells it who comes next.
    """

    #: Name of the group's instance.
    group: str
    #: Counts the re-formations of the instance; older ones are refused.
    epoch: int
    #: Addresses of the stages, in order.
    route: tuple[str, ...]
    #: Address of the feeder's worker.
    feeder: str
    #: The microbatch, and how often it has been sent: answers to older attempts are
    #: not for anyone any more.
    number: int
    attempt: int
    rows: int = 0
    #: Method of a whole model to call; None for the model itself.
    method: str | None = None
    #: Instances of which the first one's worker is to choose; none where it is chosen.
    among: tuple[Target, ...] = ()
    #: The columns, pickled, that a whole model's output becomes; None for all of it.
    outputs: bytes | None = None

    def to_message(self) -> dict[str, Any]:
        """Return what goes over the wire."""
        return dict(vars(self))

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Header:
        """Return the header that a message tells."""
        told: dict[str, Any] = dict(message)
        told["route"] = tuple(told["route"])
        among = tuple(Target(n, e, tuple(route)) for n, e, route in told["among"])
        return cls(**{**told, "among": among})

    def to(self, target: Target) -> Header:
        """Return the header through one instance."""
        name, epoch, route = target
        return replace(self, group=name, epoch=epoch, route=route, among=())


@dataclass(frozen=True)
class Payload:
    """Values by name, still as a message of another process, or already native."""

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
    """What went wrong with a microbatch in a stage, told to its feeder as data."""

    #: The pickled exception.
    error: bytes
    #: Stage that raised it, of how many, and the worker.
    stage: int
    stages: int
    worker: str
    #: Traceback as text: the frames stay where they are.
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
        """Return the stage's exception; its first cause is where that was raised."""
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
    """The group as it was is no more: the microbatch has to be sent again."""
