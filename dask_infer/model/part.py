"""A part of a model in this process: the blocks of one stage."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import torch

from dask_infer.model.content_key import content_key
from dask_infer.model.kept import KeptMemory
from dask_infer.model.loaded import LoadedModel
from dask_infer.model.store import Parcel, read_blob
from dask_infer.spec import Blob, ModelSpec
from dask_infer.spec.token_rules import TokenRules


class PartModel(LoadedModel):
    """One stage: values by name in, values by name out."""

    def __init__(self, spec: ModelSpec, stage: Any, rules: TokenRules) -> None:
        super().__init__(spec, "tensor", stage, stage.nbytes)
        self.device = stage.device
        self.floating = stage.floating
        self._rules = rules
        self._kept = KeptMemory()

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None = None
    ) -> Any:
        """Return what the next stage gets for the values of this one."""
        return self._kept.run(self.target, lambda: self.target.call(*args))

    def token_rules(self, method: str | None) -> TokenRules:
        """Return how the divided model takes tokens."""
        return self._rules

    def close(self) -> None:
        """Let go of the weights."""
        self.target.close()
        super().close()


@functools.lru_cache(maxsize=16)
def read_chain(blob: Blob) -> Any:
    """Return the model as a chain of blocks, without weights."""
    return read_blob(blob)


def pickle_chain(chain: Any, spec: ModelSpec, told: object) -> Blob:
    """Put a chain into the content store, held while the blob lives.

    Parameters
    ----------
    told
        What the model was split for. Pickles of equal chains may differ, so this and
        the model make the key, and equal calls share a group.
    """
    content = (spec.key, spec.kind, content_key(told), torch.__version__)
    key = hashlib.sha256(repr(content).encode()).hexdigest()
    parcel = Parcel(chain, key, "the model's layers")
    return parcel.write(owner=parcel.blob)


def part_bytes(chain: Blob, start: int, stop: int) -> int:
    """Projected bytes of the blocks from `start` up to `stop`."""
    return int(read_chain(chain).stage_bytes(start, stop))


def load_part(
    spec: ModelSpec,
    chain: Blob,
    start: int,
    stop: int,
    *,
    device: str,
    dtype: str | None,
) -> PartModel:
    """Load the blocks from `start` up to `stop`, and nothing else.

    Raises
    ------
    ModelLoadError
        If they cannot be read; names the model and the cause.
    """
    from dask_infer.model.split import load_stage

    divided = read_chain(chain)
    stage = load_stage(spec, divided, start, stop, device=device, dtype=dtype)
    keywords = frozenset(name for name in divided.inputs if isinstance(name, str))
    masked = "attention_mask" in keywords
    return PartModel(spec, stage, TokenRules(keywords, masked, divided.pad))
