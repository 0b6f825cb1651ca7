"""Chains in the content store, and stages loaded from them."""

from __future__ import annotations

import functools
import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from dask_infer.model.identity import pickling
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.store.blob_store import read_blob, write_pinned
from dask_infer.spec import Blob, ModelSpec, StageLayers


@functools.lru_cache(maxsize=16)
def read_chain(blob: Blob) -> Any:
    """Return the model as a chain of blocks, without weights."""
    return read_blob(blob)


def chain_blob(
    spec: ModelSpec, live: object | None, args: Any, kwargs: Any, **options: Any
) -> Blob:
    """Return a model's chain in the content store, pinned while the blob lives.

    Parameters are those of `split`. Pickles of equal chains may differ, so what the
    model is split for makes the key: equal calls share a group, and split once.
    """
    from dask_infer.model.split import split

    def write(path: Path) -> None:
        pickling.to_file(split(spec, live, args, kwargs, **options), path)

    request = content_key((args, kwargs, options))
    content = (spec.key, spec.kind, request, torch.__version__, _code())
    blob = Blob(hashlib.sha256(repr(content).encode()).hexdigest())
    write_pinned(blob, write)
    return blob


@functools.cache
def _code() -> str:
    """Digest of the code that makes chains and reads them."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def part_bytes(spec: ModelSpec, part: StageLayers, dtype: str | None) -> int:
    """Projected bytes of what a stage or a shard holds."""
    from dask_infer.model.split.stage_loader import open_uncut

    shard = _shard(part)
    if part.chain is None:
        return int(open_uncut(spec, None, dtype).shard_bytes(shard))
    return int(read_chain(part.chain).stage_bytes(part.start, part.stop, shard))


def load_part(
    spec: ModelSpec, part: StageLayers, *, device: str, dtype: str | None
) -> LoadedModel:
    """Load what a stage or a shard holds, and nothing else.

    Raises
    ------
    ModelLoadError
        If it cannot be read; names the model and the cause.
    """
    from dask_infer.model.split import load_stage
    from dask_infer.model.split.stage_loader import load_uncut

    shard = _shard(part)
    if part.chain is None:
        assert shard is not None
        return load_uncut(spec, shard, device=device, dtype=dtype)
    chain, blocks = read_chain(part.chain), (part.start, part.stop)
    return load_stage(spec, chain, *blocks, device=device, shard=shard)


def _shard(part: StageLayers) -> Any:
    from dask_infer.model.split.shards import Shard

    if part.shards == 1:
        return None
    return Shard(part.shard, part.shards, pickle.loads(part.cuts) if part.cuts else ())
