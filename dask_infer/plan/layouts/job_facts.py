"""What is known of one job before its layout is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from typing import Literal

from dask_infer.plan.facts import BlockFacts, WorkerFacts, need

Source = Literal["measured", "projected", "assumed"]

#: Share of the memory for models that a layout leaves free.
MARGIN = 0.1
#: Seconds of a partition around what it computes: of the scheduler, where the read may
#: be a task of its own, and of a worker (benchmarks/noop); and of a job.
TASK, PARTITION, START = 1e-3, 2e-3, 0.1


@dataclass(frozen=True)
class Fact:
    """One fact in words, and where it comes from."""

    name: str
    value: str
    source: Source


@dataclass(frozen=True)
class JobFacts:
    """One model, the rows that it is to predict, and the workers that are there.

    Times of forwards are those of a worker of speed 1 that has its cores to itself.

    Parameters
    ----------
    nbytes
        Bytes of the whole model once loaded.
    workers
        All workers, those that may not hold the model included.
    rows, partitions
        What is to be predicted; at most, where a filter is not known yet.
    row_seconds
        Time of the forward of one row.
    prepare_seconds
        Time of all else of one row: reading, encoding, decoding.
    call_seconds
        Time of a forward whatever its rows.
    blocks
        The chain of the model; one block where it cannot be cut and shards divide it,
        none where they do not either. Their seconds are proportions only.
    uncut
        Why it cannot be cut; empty where it can.
    sharded_seconds
        What forwards of a row took in so many shards, exchanges and all, where jobs
        measured it.
    load_rate
        Bytes a second at which one worker loads weights.
    store_rate
        Bytes a second that all hosts together get of weights.
    cores
        Cores of a host; None where each thread has one.
    core_share
        Part of its time in which a partition's thread keeps a core busy.
    resources
        Dask resources of the workers that may hold a stage.
    pinned
        Whether the user asked for these resources, so that no other worker may hold
        the model.
    """

    nbytes: int
    workers: tuple[WorkerFacts, ...]
    rows: int
    partitions: int
    row_seconds: float
    prepare_seconds: float = 0.0
    call_seconds: float = 0.0
    blocks: tuple[BlockFacts, ...] = ()
    uncut: str = ""
    sharded_seconds: Mapping[int, float] = field(default_factory=dict)
    load_rate: float = 1e9
    store_rate: float = inf
    cores: int | None = None
    core_share: float = 1.0
    resources: tuple[tuple[str, float], ...] = ()
    pinned: bool = False

    @cached_property
    def whole(self) -> int:
        """Bytes that the whole model takes in one process."""
        return max(self.nbytes, need(self.blocks))

    @cached_property
    def threads(self) -> int:
        """Partitions that run at once, if there are so many."""
        return sum(worker.threads for worker in self.workers)

    @cached_property
    def part(self) -> float:
        """Rows of a partition."""
        return self.rows / max(1, self.partitions)

    @cached_property
    def hosts(self) -> Counter[str]:
        """Threads of the workers of each host."""
        threads = Counter[str]()
        for worker in self.workers:
            threads[worker.host] += worker.threads
        return threads

    def slowdown(self, running: float) -> float:
        """How many times as long each of so many forwards of a host takes."""
        if not self.cores:
            return 1.0
        return max(1.0, running * self.core_share / self.cores)

    def loading(self, nbytes: float, copies: int = 1) -> float:
        """Seconds until each worker has so many bytes, and all hosts their copies."""
        return max(nbytes / self.load_rate, copies * nbytes / self.store_rate)


def room(worker: WorkerFacts) -> float:
    """Bytes that a layout may take on a worker."""
    return (1 - MARGIN) * worker.room


def with_margin(worker: WorkerFacts) -> WorkerFacts:
    """Return the worker with the memory that a layout may take."""
    memory = None if worker.memory is None else int(room(worker))
    return replace(worker, memory=memory)
