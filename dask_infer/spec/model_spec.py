"""What a model is, small enough to travel in every task; its weights do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How a loaded model wants its batch: tensors, NumPy arrays, or a pandas frame.
Interface = Literal["tensor", "numpy", "frame"]


@dataclass(frozen=True)
class Blob:
    """A pickled object: inline where small, else an entry of the content store."""

    #: Content key, and the name of the store's entry.
    key: str
    #: The pickle itself where it is small enough to travel in a task.
    data: bytes | None = None

    def __dask_tokenize__(self) -> object:
        # Pickles of equal content may differ: they hold files and line numbers.
        return (type(self).__name__, self.key)


@dataclass(frozen=True)
class ModelSpec:
    """A model by its content: equal content has an equal key.

    It names the place of the weights and does not hold them.
    """

    #: Hex digest of the content.
    key: str
    #: What people call it: class name, file stem or directory name.
    name: str
    #: Its format, by the name that `dask_infer.model.registry` knows.
    kind: str
    #: Real path of the file or directory, for formats that are files.
    path: str | None = None
    #: The pickled object, for formats that are pickled.
    blob: Blob | None = None
    #: Real path of a safetensors file that fills a factory's meta tensors.
    weights: str | None = None
    #: Files that can run code may be loaded.
    trust: bool = False
    #: Compile on the worker: keyword arguments of ``torch.compile``, else None.
    compile: tuple[tuple[str, object], ...] | None = None
    #: Projected bytes resident once loaded; 0 where unknown.
    nbytes: int = 0

    @property
    def label(self) -> str:
        """Name and content, for counters: models of one name differ in it."""
        return f"{self.name}-{self.key[:8]}"

    @property
    def origin(self) -> str:
        """Where its weights come from, for the log."""
        inline = self.blob is not None and self.blob.data is not None
        stored = "the task" if inline else "the content store"
        return self.weights or self.path or stored

    def __dask_tokenize__(self) -> object:
        return (type(self).__name__, self.key, self.kind, self.compile)

    def __repr__(self) -> str:
        return f"<ModelSpec {self.name} {self.kind} {self.key[:8]}>"


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
