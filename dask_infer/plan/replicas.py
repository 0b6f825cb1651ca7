"""Replicas: how many workers can hold, and whose turn it is to have another one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from dask_infer.plan.facts import BlockFacts, WorkerFacts, need


def count_replicas(
    blocks: Sequence[BlockFacts],
    workers: Sequence[WorkerFacts],
    bounds: Sequence[int],
    shards: int = 1,
) -> int:
    """Return how many replicas with these bounds the workers can hold side by side.

    Parameters
    ----------
    blocks
        What each of the shards of a block takes.
    shards
        Workers of each stage.
    """
    needs = sorted((need(blocks[a:b]) for a, b in pairwise(bounds)), reverse=True)
    rooms = sorted((worker.room for worker in workers), reverse=True)
    each = len(needs) * shards
    replicas = len(rooms) // each
    while replicas and not all(
        rooms[place] >= needs[place // (replicas * shards)]
        for place in range(replicas * each)
    ):
        replicas -= 1
    return replicas


def next_replica(seconds: Sequence[float], replicas: Sequence[int]) -> int:
    """Return which of several models on the same rows gets the next replica.

    The slowest so far, which sets the pace of all: no other sharing of the workers
    makes the slowest faster.

    Parameters
    ----------
    seconds
        Seconds of a row in one replica, by model.
    replicas
        Replicas that each has.
    """
    paces = [s / max(1, n) for s, n in zip(seconds, replicas, strict=True)]
    return paces.index(max(paces))
