"""One stage of one instance, or a shard of it, as its Dask task gets it."""

from __future__ import annotations

from dataclasses import dataclass

from dask_infer.spec import GroupSpec, StageLayers

#: What the keys of stage tasks begin with.
KEY_PREFIX = "infer-"


@dataclass(frozen=True)
class StageSpec:
    """What a worker loads and serves."""

    group: GroupSpec
    #: Name of the instance, how many stages it has, and how often it was placed.
    instance: str
    stages: int
    epoch: int
    layers: StageLayers

    @property
    def slot(self) -> int:
        """Place among all shards of all stages of the instance."""
        return self.layers.stage * self.layers.shards + self.layers.shard

    @property
    def key(self) -> str:
        """Name of the task, a new one for every epoch: Dask counts deaths by key."""
        own = self.layers
        part = f"stage{own.stage}of{self.stages}" if own.chain else "replica"
        if own.shards > 1:
            part += f"-shard{own.shard}of{own.shards}"
        return f"{KEY_PREFIX}{part}-{self.instance}-epoch{self.epoch}"
