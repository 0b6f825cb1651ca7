"""Classes of workers: equal memory and speed, so a search need not distinguish them.

A search over classes counts how many workers of each are used, so its cost grows with
the number of such counts. Three steps keep it small; the first two change no answer.

1. Memory beyond what the whole model needs is no limit.
2. A worker is left out when as many others as there are stages have no less memory and
   are no slower: any layout with it can be moved to one of those that it leaves free.
3. Beyond `STEPS`, classes that differ least are merged under the smaller memory and the
   lower speed. What is found still fits, but need no longer be the best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dask_infer.plan.facts import WorkerFacts

#: Most steps of a search before classes are merged (cuts tried: counts of workers,
#: times classes, times blocks squared). 70 blocks on 8 workers that all differ, and 500
#: blocks on 100 equal ones, stay below it. A search took 0.2 s at most; with 16 times
#: the steps 3 s, and it runs on the scheduler's event loop.
STEPS = 1 << 24

#: How many workers of each class are in use.
Used = tuple[int, ...]


@dataclass(frozen=True)
class WorkerClass:
    """Workers that are alike."""

    room: float
    speed: float
    workers: tuple[WorkerFacts, ...]


def worker_classes(
    workers: Sequence[WorkerFacts], stages: int, blocks: int, whole: int
) -> list[WorkerClass]:
    """Return the classes of workers that a search for up to `stages` stages looks at.

    The chain has so many blocks, which need `whole` bytes together.
    """
    alike: dict[tuple[float, float], list[WorkerFacts]] = {}
    for worker in _useful(workers, stages, whole):
        alike.setdefault((_room(worker, whole), worker.speed), []).append(worker)
    classes = [WorkerClass(*key, tuple(group)) for key, group in sorted(alike.items())]
    while len(classes) > 1 and _steps(classes, stages, blocks) > STEPS:
        classes = _merge(classes)
    return classes


def uses(classes: Sequence[WorkerClass], stages: int) -> Iterator[Used]:
    """Return all counts of up to `stages` workers by class, the fewest first."""
    counts: list[Used] = [()]
    for each in classes:
        counts = [
            (*used, number)
            for used in counts
            for number in range(min(len(each.workers), stages - sum(used)) + 1)
        ]
    yield from sorted(counts, key=sum)


def _room(worker: WorkerFacts, whole: int) -> float:
    return worker.room if worker.room < whole else float("inf")


def _useful(
    workers: Sequence[WorkerFacts], stages: int, whole: int
) -> list[WorkerFacts]:
    """Leave out workers that enough others are as good as."""
    kept: list[WorkerFacts] = []
    hosts = Counter(worker.host for worker in workers)

    # Whoever is as good comes earlier, and among its equals only the first ones stay:
    # those on the hosts with most workers.
    def rank(worker: WorkerFacts) -> tuple[float, float, int, str]:
        room = _room(worker, whole)
        return (-room, -worker.speed, -hosts[worker.host], worker.host)

    for worker in sorted(workers, key=rank):
        better = sum(other.speed >= worker.speed for other in kept)
        if better < stages:
            kept.append(worker)
    return kept


def _steps(classes: Sequence[WorkerClass], stages: int, blocks: int) -> int:
    """Cuts that a search tries at most."""
    counts = [1] + [0] * stages
    for each in classes:
        most = min(len(each.workers), stages)
        counts = [sum(counts[max(0, n - most) : n + 1]) for n in range(stages + 1)]
    return sum(counts) * len(classes) * blocks**2


def _merge(classes: list[WorkerClass]) -> list[WorkerClass]:
    """Merge the two neighbours that lose least memory and speed by it."""

    def loss(at: int) -> float:
        one, two = classes[at], classes[at + 1]
        rooms = 0.0 if one.room == two.room else 1 - one.room / two.room
        speeds = sorted((one.speed, two.speed))
        return rooms + 1 - speeds[0] / speeds[1]

    at = min(range(len(classes) - 1), key=loss)
    one, two = classes[at], classes[at + 1]
    merged = WorkerClass(
        min(one.room, two.room), min(one.speed, two.speed), one.workers + two.workers
    )
    return [*classes[:at], merged, *classes[at + 2 :]]
