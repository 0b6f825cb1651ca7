"""Shards of stages as threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

from dask_infer.model.split import Chain, load_stage
from dask_infer.model.split.shards import Collective, Shard, exchanging
from dask_infer.model.split.shards.collective import Meeting, ThreadCollective
from dask_infer.spec import ModelSpec


def on_ranks(shards: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what each shard's thread makes of it; exchanges of others end with one."""
    meeting = Meeting(shards)

    def run(shard: int) -> Any:
        try:
            with exchanging(ThreadCollective(meeting, shard)):
                return work(shard)
        except threading.BrokenBarrierError:
            return None
        except BaseException:
            meeting.abort()
            raise

    with ThreadPoolExecutor(shards) as pool:
        return list(pool.map(run, range(shards)))


def run_sharded(
    spec: ModelSpec,
    chain: Chain,
    cuts: tuple[int, ...],
    shards: int,
    kwargs: Any,
    args: Any = (),
    found: Any = (),
) -> tuple[Any, list[float]]:
    """Return the output, and the largest share of each stage's bytes in a shard."""
    carry = chain.bind(args, kwargs)
    shares = []
    for start, stop in pairwise((0, *cuts, len(chain.blocks))):
        stages = [
            load_stage(spec, chain, start, stop, shard=Shard(shard, shards, found))
            for shard in range(shards)
        ]
        for shard, stage in enumerate(stages):
            assert stage.nbytes == chain.stage_bytes(
                start, stop, Shard(shard, shards, found)
            )
        most = max(stage.nbytes for stage in stages)
        shares.append(most / chain.stage_bytes(start, stop))
        entering = [(copied(carry),) for _ in stages]
        outputs = on_ranks(
            shards,
            lambda shard, stages=stages, entering=entering: stages[shard].call(
                entering[shard], {}
            ),
        )
        carry = outputs[0]
        for other in outputs[1:]:
            assert other.keys() == carry.keys()
            assert all(type(v) is type(carry[n]) for n, v in other.items())
    return chain.output(carry), shares


def copied(values: dict[Any, Any]) -> dict[Any, Any]:
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


__all__ = ["Collective", "on_ranks", "run_sharded"]
