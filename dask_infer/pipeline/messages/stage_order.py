"""What the coordinator orders of a worker: to be one stage of one instance."""

from __future__ import annotations

from dataclasses import dataclass

from dask_infer.spec import GroupSpec


@dataclass(frozen=True)
class StageOrder:
    """One stage, as its Dask task gets it."""

    spec: GroupSpec
    #: Name of the instance, and the place in it.
    instance: str
    index: int
    stages: int
    epoch: int
    #: Blocks of the chain that live here: from, and up to.
    start: int
    stop: int
    #: Microbatches that the instance admits.
    window: int

    @property
    def key(self) -> str:
        """Name of the task, another one after every loss: Dask counts deaths by key."""
        part = f"stage{self.index}of{self.stages}" if self.spec.chain else "replica"
        return f"infer-{part}-{self.instance}-epoch{self.epoch}"
