"""Layouts that run in the processes of the partitions: whole replicas, and sweeps."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import ceil, floor

from dask_infer.plan.facts import WorkerFacts, need
from dask_infer.plan.layouts.alternative import Alternative
from dask_infer.plan.layouts.job_facts import PARTITION, START, TASK, JobFacts, room
from dask_infer.plan.layouts.sweep_groups import RESIDENT, plan_groups
from dask_infer.plan.units import in_bytes
from dask_infer.spec import Layout

PINNED = (
    "resources= keeps the model on workers that have them, and partitions run on any"
)


def data(facts: JobFacts) -> Alternative:
    """Project a whole replica in every process that runs partitions."""
    layout = Layout()
    if facts.pinned:
        return Alternative("data", layout, refused=PINNED)
    smallest = min(facts.workers, key=room)
    if facts.whole > room(smallest):
        refused = (
            f"needs {in_bytes(facts.whole)} on every worker; {smallest.address} has "
            f"{in_bytes(room(smallest))}"
        )
        return Alternative("data", layout, refused=refused)
    used = min(len(facts.workers), facts.partitions)
    hosts = min(len(facts.hosts), used)
    return Alternative(
        "data",
        layout,
        replicas=used,
        workers=used,
        memory=facts.whole,
        room=room(smallest),
        load=facts.loading(facts.nbytes, hosts),
        run=START + max(makespan(facts), facts.partitions * TASK),
    )


def makespan(facts: JobFacts, *, forward: bool = True) -> float:
    """Seconds until all partitions are done, each thread taking one after another.

    Parameters
    ----------
    forward
        Whether the process runs the model, or only prepares rows for others.
    """
    durations: Counter[float] = Counter()
    busy = min(1.0, facts.partitions / facts.threads)
    for worker in facts.workers:
        slower = facts.slowdown(busy * facts.hosts[worker.host])
        seconds = _partition_seconds(facts, worker, forward) * slower
        durations[seconds] += worker.threads
    return last_end(durations, facts.partitions)


def _partition_seconds(facts: JobFacts, worker: WorkerFacts, forward: bool) -> float:
    prepare = PARTITION + facts.part * facts.prepare_seconds
    if not forward:
        return prepare
    run = (facts.call_seconds + facts.part * facts.row_seconds) / worker.speed
    if worker.one_at_a_time:  # one thread prepares while the other's forward runs
        return max(prepare + run, worker.threads * run)
    return prepare + run


def last_end(durations: Counter[float], tasks: int) -> float:
    """Return when the last of `tasks` ends, where each thread takes the next at once.

    Parameters
    ----------
    durations
        Threads by the seconds that a task takes on them.
    """
    threads = sum(durations.values())
    if tasks <= 0 or not threads:
        return 0.0
    if len(durations) == 1:
        return ceil(tasks / threads) * next(iter(durations))
    if not min(durations):
        return 0.0
    # The tasks start at the first moments at which a thread is free: find the last.
    low, high = 0.0, ceil(tasks / threads) * max(durations)

    def started(by: float) -> int:
        return sum(n * (floor(by / each) + 1) for each, n in durations.items())

    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if started(middle) >= tasks else (middle, high)
    # Fewer tasks than threads: the fastest are not preferred.
    busy = durations if tasks >= threads else Counter({max(durations): 1})
    return max((floor(high / each) + 1) * each for each in busy)


def sweep(facts: JobFacts) -> Alternative:
    """Project layer groups that go one after the other through each process.

    A pass takes as long as reading the weights or as computing its rows, whichever is
    longer. The last pass computes only the rows that are left.
    """
    layout = Layout(sweep=True)
    if facts.pinned:
        return Alternative("sweep", layout, refused=PINNED)
    if facts.uncut:
        return Alternative("sweep", layout, refused=facts.uncut)
    smallest = min(facts.workers, key=room)
    memory = room(smallest)
    largest = max(facts.blocks, key=lambda block: need([block]))
    if need([largest]) > memory:
        refused = (
            f'block "{largest.name}" needs {in_bytes(need([largest]))} on every '
            f"worker; {smallest.address} has {in_bytes(memory)}"
        )
        return Alternative("sweep", layout, refused=refused)
    bounds = plan_groups(facts.blocks, memory)
    groups = [facts.blocks[start:stop] for start, stop in pairwise(bounds)]
    most = max(sum(block.nbytes for block in group) for group in groups)
    used = min(len(facts.workers), facts.partitions)
    return Alternative(
        "sweep",
        layout,
        replicas=used,
        workers=used,
        memory=int(min(facts.whole, RESIDENT * most, memory)),
        room=memory,
        load=facts.loading(most, min(len(facts.hosts), used)),
        run=START + max(_passes(facts), facts.partitions * TASK),
    )


def _passes(facts: JobFacts) -> float:
    """Seconds of all passes of the slowest process."""
    # A pass takes the partitions that all threads of a process run at once.
    rounds = max(1, ceil(facts.partitions / facts.threads))
    left = facts.partitions - (rounds - 1) * facts.threads
    read = facts.loading(facts.nbytes, len(facts.hosts))
    slowest = 0.0
    for worker in facts.workers:
        alone = _partition_seconds(facts, worker, forward=True)
        busy = facts.hosts[worker.host]
        full = alone * facts.slowdown(busy)
        last = alone * facts.slowdown(busy * left / facts.threads)
        slowest = max(slowest, (rounds - 1) * max(read, full) + max(read, last))
    return slowest
