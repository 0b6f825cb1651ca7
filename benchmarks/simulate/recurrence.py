"""A pipeline by a max-plus recurrence: no events, no clock, one step a stage.

A microbatch enters a stage when it has left the one before and the stage has finished
what came first; it enters the pipeline when its feeder offers it and the window has
room. Stages and windows are first come, first served. A feeder takes a partition,
offers its microbatches, waits for all outputs, and takes the next partition.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dask_infer.plan.window import feeder_share


@dataclass(frozen=True)
class Loss:
    """A stage that is lost while a job runs; times in seconds."""

    stage: int
    #: From the beginning of the job.
    at: float
    #: From the loss until all stages serve again.
    back: float


@dataclass(frozen=True)
class Pipeline:
    """What a job of microbatches meets; times in seconds."""

    #: The time of each stage for one microbatch, drawn anew for each.
    times: Callable[[], Sequence[float]]
    stages: int
    window: int
    #: From the end of a stage until the next has its input, and for the first and last.
    hop: float = 0.0
    instances: int = 1
    #: Partitions that are fed at once.
    feeders: int = 1
    #: From the last output of a partition until the feeder offers of the next.
    between: float = 0.0
    loss: Loss | None = None


@dataclass
class Ran:
    """What became of a job."""

    seconds: float = 0.0
    #: Forwards that ran twice, by stage.
    again: list[int] = field(default_factory=list)


@dataclass
class _Instance:
    #: When each stage is free, and when it would be without the loss.
    free: list[float]
    undisturbed: list[float]
    #: When microbatches inside are done, sorted.
    inside: list[float] = field(default_factory=list)


def run(pipeline: Pipeline, partitions: Sequence[int]) -> Ran:
    """Put partitions of so many microbatches through; return when the last is done."""
    ran = Ran(again=[0] * pipeline.stages)
    share = feeder_share(
        pipeline.window, pipeline.instances, min(pipeline.feeders, len(partitions))
    )
    idle = [0.0] * pipeline.stages
    instances = [_Instance(idle, idle) for _ in range(pipeline.instances)]
    waiting = iter(partitions)
    order = itertools.count()
    # Offers: when, tie-break, microbatches left, completions of this feeder's.
    offers: list[tuple[float, int, int, list[float]]] = [
        (0.0, next(order), count, [])
        for count in itertools.islice(waiting, pipeline.feeders)
    ]
    heapq.heapify(offers)
    while offers:
        offered, _, left, own = heapq.heappop(offers)
        done = _through(pipeline, instances, offered, ran)
        insort(own, done)
        ran.seconds = max(ran.seconds, done)
        if left > 1:
            # The next one waits for an output where its share is unanswered.
            after = own.pop(0) if len(own) >= share else 0.0
            again = (max(offered, after), next(order), left - 1, own)
            heapq.heappush(offers, again)
        elif (count := next(waiting, 0)) > 0:
            start = own[-1] + pipeline.between
            heapq.heappush(offers, (start, next(order), count, []))
    return ran


def _through(
    pipeline: Pipeline, instances: list[_Instance], offered: float, ran: Ran
) -> float:
    """Put one microbatch through the instance that has the fewest inside."""
    for each in instances:
        while each.inside and each.inside[0] <= offered:
            each.inside.pop(0)
    instance = min(instances, key=lambda each: len(each.inside))
    entry = offered
    if len(instance.inside) >= pipeline.window:
        instance = min(instances, key=lambda each: each.inside[0])
        entry = instance.inside.pop(0)
    times, loss = pipeline.times(), pipeline.loss
    if loss is not None and entry < loss.at + loss.back:
        instance.undisturbed = _ends(pipeline, instance.undisturbed, entry, times)
        if instance.undisturbed[loss.stage] > loss.at:
            if entry < loss.at:
                # The stages before the lost one run it to no avail, and once more.
                for stage in range(loss.stage):
                    ran.again[stage] += 1
            entry = loss.at + loss.back
            if instance.free[loss.stage] < entry:
                instance.free = [entry] * pipeline.stages
    instance.free = _ends(pipeline, instance.free, entry, times)
    done = instance.free[-1] + pipeline.hop
    insort(instance.inside, done)
    return done


def _ends(
    pipeline: Pipeline, free: Sequence[float], entry: float, times: Sequence[float]
) -> list[float]:
    """Return when each stage has finished a microbatch."""
    ends, before = [], entry
    for idle, seconds in zip(free, times, strict=True):
        before = max(before + pipeline.hop, idle) + seconds
        ends.append(before)
    return ends
