"""Shards of stages as threads of this process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from dask_infer.model.split import Chain, load_stage
from dask_infer.model.split.shards import Shard, exchanging
from dask_infer.model.split.shards.collective import Meeting, ThreadCollective
from dask_infer.model.split.shards.trial import in_threads
from dask_infer.pipeline.messages.wire import copied
from dask_infer.spec import ModelSpec


def on_ranks(shards: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what each shard's thread makes of it; exchanges of others end with one."""
    meeting = Meeting(shards)

    def run(shard: int) -> Any:
        with exchanging(ThreadCollective(meeting, shard)):
            return work(shard)

    return in_threads(shards, run, meeting)


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
