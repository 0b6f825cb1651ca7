"""A microbatch between workers: its header, its payload, and what may fail."""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from dask_infer.errors import pickled
from dask_infer.pipeline.messages.group_state import Target
from dask_infer.pipeline.messages.stage_spec import StageSpec
from dask_infer.pipeline.messages.wire import Message, again, copied, pack, unpack
from dask_infer.replica.measured import NO_FORWARD, ForwardTimes

#: What a handler answers to a call. It is data, also where something was lost: where a
#: handler raises what means a closed connection, Dask closes its caller's without an
#: answer (distributed 2026.8.0), and the failure would count as that of another stage.
Answer: TypeAlias = dict[str, Any]

DONE: Answer = {"status": "done"}
LOST: Answer = {"status": "lost"}


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
    #: Number of the microbatch in a stage of several shards, equal on all of them.
    turn: int = 0
    #: What its forwards took, in the stages that it has passed.
    times: ForwardTimes = NO_FORWARD


@dataclass(frozen=True)
class Payload:
    """Values by name, as a message of another process or already native."""

    message: Message | None = None
    values: dict[Any, Any] = field(default_factory=dict)
    #: What the forwards took that made them; no part of the message.
    times: ForwardTimes = NO_FORWARD

    def open(self) -> dict[Any, Any]:
        """Return the values, in memory that the receiver may write into."""
        return copied(self.values) if self.message is None else unpack(self.message)

    def packed(self) -> Message:
        """Return the message."""
        return pack(self.values) if self.message is None else again(self.message)


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
    #: Shard of the stage; None where it has one alone.
    shard: int | None = None
    out_of_memory: bool = False
    #: It could not go on because another shard failed.
    of_other: bool = False

    @classmethod
    def of(
        cls,
        error: BaseException,
        spec: StageSpec,
        worker: str,
        *,
        out_of_memory: bool,
        of_other: bool,
    ) -> Failure:
        """Describe an exception and its causes."""
        trace = "".join(traceback.format_exception(error))
        if not isinstance(error, Exception):
            # What ends a thread would end the event loop of the feeder's worker.
            error = RuntimeError(f"{type(error).__name__}: {error}")
        layers = spec.layers
        shard = None if layers.shards == 1 else layers.shard
        where = (layers.stage, spec.stages, worker, trace)
        return cls(pickled(error), *where, shard, out_of_memory, of_other)

    def answer(self) -> Answer:
        """Return what a handler answers."""
        return {"status": "failed", "failure": vars(self)}

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
        where = f"stage {failure.stage} of {failure.stages}"
        if failure.shard is not None:
            where += f", shard {failure.shard}"
        where += f" on worker {failure.worker}"
        super().__init__(f"\n\nin {where}:\n{failure.trace}")
        self.failure = failure


class StageLost(Exception):
    """The instance changed, or a worker is gone: the microbatch must be sent again."""
