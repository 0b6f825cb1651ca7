"""A plan of stages: where a chain of blocks is cut, and which worker holds what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dask_infer.plan.facts import BlockFacts, WorkerFacts, need, transfer_seconds
from dask_infer.plan.units import in_bytes, in_seconds

#: Columns of the table of a plan.
HEAD = ("stage", "blocks", "parameters", "bytes", "projected", "of slowest", "worker")


@dataclass(frozen=True)
class PlannedStage:
    """Consecutive blocks on one worker, or on each of its shards; all is projected."""

    #: Blocks `start` to `stop`, the latter not included.
    start: int
    stop: int
    #: Names of the first and the last block.
    blocks: str
    worker: str
    #: The same, or its shards.
    members: tuple[str, ...]
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
        """The workers of all stages, or of all shards of all stages, in order."""
        return tuple(w for stage in self.stages for w in stage.members)

    @property
    def shards(self) -> int:
        """Workers of each stage."""
        return len(self.stages[0].members)

    @property
    def slowest(self) -> float:
        """Seconds between two microbatches in steady state."""
        return max(max(stage.seconds, stage.transfer) for stage in self.stages)

    def table(self) -> str:
        """Return a line for each stage and the reasons, to be printed."""
        rows = [HEAD, *map(self._cells, range(len(self.stages)))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if name in ("blocks", "worker") else cell.rjust(width)
                for name, cell, width in zip(HEAD, row, widths, strict=True)
            ).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, *self.reasons])

    def _cells(self, index: int) -> tuple[str, ...]:
        stage = self.stages[index]
        share = stage.seconds / self.slowest if self.slowest else 1.0
        return (
            str(index),
            stage.blocks,
            f"{stage.parameters:,}",
            in_bytes(stage.nbytes),
            in_seconds(stage.seconds),
            f"{share:.0%}",
            stage.worker,
        )


def stage_plan(
    blocks: Sequence[BlockFacts],
    bounds: Sequence[int],
    workers: Sequence[WorkerFacts],
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
                blocks="..".join(dict.fromkeys((inside[0].name, inside[-1].name))),
                worker=worker.address,
                members=worker.members or (worker.address,),
                parameters=sum(block.parameters for block in inside),
                nbytes=sum(block.nbytes for block in inside),
                memory=need(inside),
                seconds=sum(block.seconds for block in inside) / worker.speed,
                cut_bytes=cut,
                transfer=transfer_seconds(cut),
            )
        )
    return StagePlan(tuple(stages))
