"""One stage of one instance, as its Dask task gets it from the coordinator."""

from __future__ import annotations

from dataclasses import dataclass

from dask_infer.spec import GroupSpec


@dataclass(frozen=True)
class StageSpec:
    """What a worker loads and serves."""

    group: GroupSpec
    #: Name of the instance, and the stage's place in it.
    instance: str
    index: int
    stages: int
    epoch: int
    #: The stage's blocks of the chain: `start` to `stop`, the latter not included.
    start: int
    stop: int

    @property
    def key(self) -> str:
        """Name of the task, a new one for every epoch: Dask counts deaths by key."""
        part = f"stage{self.index}of{self.stages}" if self.group.chain else "replica"
        return f"infer-{part}-{self.instance}-epoch{self.epoch}"
