"""A plan of stages: where a chain of blocks is cut, and which worker holds what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dask_infer.plan.facts import BlockFacts, Link, WorkerFacts, need
from dask_infer.plan.units import in_bytes, in_seconds


@dataclass(frozen=True)
class PlannedStage:
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
    #: Seconds of one microbatch on the stage's worker.
    seconds: float
    #: Bytes of a microbatch that come from the stage before, and seconds to send them.
    cut_bytes: int = 0
    transfer: float = 0.0


@dataclass(frozen=True)
class StagePlan:
    """The stages of one replica, and the reasons for them."""

    stages: tuple[PlannedStage, ...]
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

    def table(self) -> str:
        """Return a line for each stage and the reasons, to be printed."""
        cells = [list(self._row(0)), *(
            list(self._row(index).values()) for index in range(len(self.stages))
        )]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if name in ("blocks", "worker") else cell.rjust(width)
                for name, cell, width in zip(cells[0], line, widths, strict=True)
            ).rstrip()
            for line in cells
        ]
        return "\n".join([*lines, *self.reasons])

    def _row(self, index: int) -> dict[str, str]:
        stage = self.stages[index]
        one = stage.first == stage.last
        share = stage.seconds / self.slowest if self.slowest else 1.0
        return {
            "stage": str(index),
            "blocks": stage.first if one else f"{stage.first}..{stage.last}",
            "parameters": f"{stage.parameters:,}",
            "bytes": in_bytes(stage.nbytes),
            "projected": in_seconds(stage.seconds),
            "of slowest": f"{share:.0%}",
            "worker": stage.worker,
        }


def stage_plan(
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
            PlannedStage(
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
