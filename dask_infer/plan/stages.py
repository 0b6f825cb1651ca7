"""Stages: where a chain of blocks is cut, and which worker holds which piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dask_infer.plan.facts import BlockFacts, Link, WorkerFacts


@dataclass(frozen=True)
class Stage:
    """Consecutive blocks on one worker; all numbers are projected."""

    #: Blocks `start` to `stop`, the latter not included.
    start: int
    stop: int
    #: Names of the first and the last block.
    first: str
    last: str
    worker: str
    parameters: int
    #: Bytes of weights and buffers.
    nbytes: int
    #: Bytes of memory: the weights and the largest activations.
    memory: int
    #: Time of one microbatch on the stage's worker.
    seconds: float
    #: Bytes of a microbatch that come from the stage before, and their time on the way.
    cut_bytes: int = 0
    transfer: float = 0.0


@dataclass(frozen=True)
class StagePlan:
    """The stages of one replica, and why they are as they are."""

    stages: tuple[Stage, ...]
    reasons: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[int, ...]:
        """First block of each stage, and the end of the last."""
        return (0, *(stage.stop for stage in self.stages))

    @property
    def workers(self) -> tuple[str, ...]:
        """The worker of each stage."""
        return tuple(stage.worker for stage in self.stages)

    @property
    def slowest(self) -> float:
        """Seconds between two microbatches in steady state."""
        return max(max(stage.seconds, stage.transfer) for stage in self.stages)

    @property
    def cut_bytes(self) -> int:
        """Bytes of a microbatch that travel between stages."""
        return sum(stage.cut_bytes for stage in self.stages)


def need(blocks: Sequence[BlockFacts]) -> int:
    """Bytes that blocks take on one worker: all weights, the largest activations."""
    most = max((block.activation_bytes for block in blocks), default=0)
    return sum(block.nbytes for block in blocks) + most


def lay_out(
    blocks: Sequence[BlockFacts],
    bounds: Sequence[int],
    workers: Sequence[WorkerFacts],
    link: Link,
) -> StagePlan:
    """Return the plan whose stages lie between `bounds`, one on each of `workers`."""
    stages = []
    for (start, stop), worker in zip(pairwise(bounds), workers, strict=True):
        inside = blocks[start:stop]
        cut = inside[0].cut_bytes if start else 0
        stages.append(
            Stage(
                start=start,
                stop=stop,
                first=inside[0].name,
                last=inside[-1].name,
                worker=worker.address,
                parameters=sum(block.parameters for block in inside),
                nbytes=sum(block.nbytes for block in inside),
                memory=need(inside),
                seconds=sum(block.seconds for block in inside) / worker.speed,
                cut_bytes=cut,
                transfer=link.seconds(cut) if start else 0.0,
            )
        )
    return StagePlan(tuple(stages))
