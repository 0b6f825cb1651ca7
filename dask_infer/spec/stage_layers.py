"""The layers of a model that one stage holds."""

from __future__ import annotations

from dataclasses import dataclass

from dask_infer.spec.model_spec import Blob


@dataclass(frozen=True)
class StageLayers:
    """What one stage of a pipeline holds of a model, or one shard of the stage."""

    #: The model as a chain of blocks; None where shards divide a model that is none.
    chain: Blob | None
    #: Blocks that live here: from, and up to.
    start: int
    stop: int
    #: Number of the stage.
    stage: int
    #: Number of the shard that holds its part of tensors, and how many there are.
    shard: int = 0
    shards: int = 1
    #: How the shards divide weights, where a trial found better cuts; pickled.
    cuts: bytes = b""

    @property
    def name(self) -> str:
        """What messages call it."""
        stage = f"stage {self.stage}"
        return stage if self.shards == 1 else f"{stage}, shard {self.shard}"
