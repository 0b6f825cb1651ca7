"""One stage of one instance, or a shard of it, as its Dask task gets it."""

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
    #: Which of the workers that share the stage's tensors, and how many there are.
    shard: int = 0
    shards: int = 1
    #: How the shards divide weights, where a trial found a better way; pickled.
    cuts: bytes = b""

    @property
    def slot(self) -> int:
        """Place among all shards of all stages of the instance."""
        return self.index * self.shards + self.shard

    @property
    def name(self) -> str:
        """What messages call it."""
        stage = f"stage {self.index}"
        return stage if self.shards == 1 else f"{stage}, shard {self.shard}"

    @property
    def key(self) -> str:
        """Name of the task, a new one for every epoch: Dask counts deaths by key."""
        part = f"stage{self.index}of{self.stages}" if self.group.chain else "replica"
        if self.shards > 1:
            part += f"-shard{self.shard}of{self.shards}"
        return f"infer-{part}-{self.instance}-epoch{self.epoch}"
