"""Layouts on workers of their own, fed by the partitions: replicas, stages, shards."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil

from dask_infer.errors import PlacementError
from dask_infer.plan.assign import count_replicas
from dask_infer.plan.facts import WorkerFacts, need
from dask_infer.plan.layouts.alternative import Alternative
from dask_infer.plan.layouts.job_facts import START, TASK, JobFacts, room, with_margin
from dask_infer.plan.layouts.local_layouts import makespan
from dask_infer.plan.layouts.shards import EXCHANGE, in_shards
from dask_infer.plan.microbatch_size import OVERHEAD, ROWS, fewest_rows
from dask_infer.plan.min_stages import min_stages
from dask_infer.plan.plan_pipeline import plan_pipeline
from dask_infer.plan.stage_plan import StagePlan
from dask_infer.plan.units import count, in_bytes
from dask_infer.spec import Layout

#: Numbers of stages that are compared before only powers of two are.
EVERY_STAGES = 8
#: Seconds until workers of their own are found and their stages started, before these
#: load.
FORMING = 0.1
#: Workers that may share a layer.
SHARDS = (2, 4, 8)


def holders(facts: JobFacts) -> list[WorkerFacts]:
    """Return the workers that may hold a stage, with the memory that it may take."""
    return [with_margin(worker) for worker in facts.workers if worker.holds]


def _none_left(facts: JobFacts) -> str:
    """Return what refuses a model that no worker may hold."""
    if facts.resources:
        return f"no worker with resources={dict(facts.resources)} is left for it"
    return "the other models of the job take all workers that could hold it"


def replicas(facts: JobFacts) -> Alternative | None:
    """Project whole replicas on some workers, fed by all of them.

    None where every worker could hold the model itself just as well.
    """
    able = [worker for worker in holders(facts) if worker.room >= facts.whole]
    if not facts.pinned and len(able) == len(facts.workers):
        return None
    if not able:
        largest = max(
            facts.workers, key=lambda worker: (worker.holds > 0, room(worker))
        )
        refused = (
            f"needs {in_bytes(facts.whole)}; {largest.address} has the most, "
            f"{in_bytes(room(largest))}"
            if largest.holds
            else _none_left(facts)
        )
        return Alternative("replicas", Layout(), facts.resources, refused=refused)
    # Without resources the number alone says that replicas live on workers of theirs.
    layout = Layout() if facts.resources else Layout(replicas=len(able))
    return Alternative(
        "replicas",
        layout,
        facts.resources,
        replicas=len(able),
        workers=len(able),
        memory=facts.whole,
        room=min(worker.room for worker in able),
        load=FORMING + facts.loading(facts.nbytes, len({w.host for w in able})),
        run=_streamed(facts, [[w] for w in able], [[1.0]] * len(able)),
    )


def stages(facts: JobFacts) -> list[Alternative]:
    """Project pipelines, by their number of stages."""
    able = holders(facts)
    if not facts.blocks:
        return [_refused("stages", Layout(stages="auto"), facts, facts.uncut)]
    if not able:
        return [_refused("stages", Layout(stages="auto"), facts, _none_left(facts))]
    try:
        least = max(2, min_stages(facts.blocks, able))
    except PlacementError as error:
        return [_refused("stages", Layout(stages="auto"), facts, _cause(error))]
    most = min(len(facts.blocks), len(able))
    if most < least:
        why = (
            f"needs 2 workers and 2 blocks; there are {count(len(able), 'worker')} "
            f"and {count(len(facts.blocks), 'block')}"
        )
        return [_refused("stages", Layout(stages=2), facts, why)]
    numbers = [
        number
        for number in range(least, most + 1)
        if number - least < EVERY_STAGES or number == most or not number & (number - 1)
    ]
    return [_pipeline(facts, able, number) for number in numbers]


def _pipeline(facts: JobFacts, able: Sequence[WorkerFacts], number: int) -> Alternative:
    layout = Layout(stages=number)
    try:
        plan = plan_pipeline(facts.blocks, able, number, facts.link)
    except PlacementError as error:
        return _refused("stages", layout, facts, _cause(error))
    number_of_replicas = count_replicas(facts.blocks, able, plan.bounds)
    seconds = sum(block.seconds for block in facts.blocks) or 1.0
    shares = [
        sum(b.seconds for b in facts.blocks[stage.start : stage.stop]) / seconds
        for stage in plan.stages
    ]
    by_address = {worker.address: worker for worker in able}
    first = [by_address[address] for address in plan.workers]
    others = [worker for worker in able if worker.address not in plan.workers]
    routes = [first, *_batched(others, number)][:number_of_replicas]
    biggest = max(plan.stages, key=lambda stage: stage.memory)
    most = max(stage.nbytes for stage in plan.stages)
    stored = len(routes) * facts.nbytes / facts.store_rate
    return Alternative(
        "stages",
        layout,
        facts.resources,
        replicas=len(routes),
        workers=number * len(routes),
        memory=biggest.memory,
        room=by_address[biggest.worker].room,
        load=FORMING + max(most / facts.load_rate, stored),
        run=_streamed(facts, routes, [shares] * len(routes), plan),
    )


def _batched(
    workers: Sequence[WorkerFacts], number: int
) -> Iterator[Sequence[WorkerFacts]]:
    """Return consecutive workers, so many at a time."""
    for start in range(0, len(workers) - number + 1, number):
        yield workers[start : start + number]


def _streamed(
    facts: JobFacts,
    routes: Sequence[Sequence[WorkerFacts]],
    shares: Sequence[Sequence[float]],
    plan: StagePlan | None = None,
) -> float:
    """Seconds until microbatches of all rows have passed one of the routes.

    Parameters
    ----------
    routes
        The workers of each replica, in order.
    shares
        What part of a forward each of them computes.
    plan
        Where there are stages, for what travels between them.
    """
    slowest = max(
        share / worker.speed
        for route, parts in zip(routes, shares, strict=True)
        for worker, share in zip(route, parts, strict=True)
    )
    best = fewest_rows(
        OVERHEAD + slowest * facts.call_seconds, slowest * facts.row_seconds
    )
    # A partition is cut into equal microbatches of about that size.
    each = max(1, round(facts.part / best))
    size = facts.part / each
    forward = facts.call_seconds + size * facts.row_seconds
    total = facts.partitions * each
    busy: dict[str, float] = defaultdict(float)
    beats, fills = [], []
    hops = [
        facts.link.seconds(int(stage.cut_bytes * size / ROWS))
        for stage in (plan.stages if plan else ())
    ]
    for route, parts in zip(routes, shares, strict=True):
        times = [
            forward * share / worker.speed
            for worker, share in zip(route, parts, strict=True)
        ]
        for worker, seconds in zip(route, times, strict=True):
            busy[worker.host] += seconds
        beats.append(OVERHEAD + max([*times, *hops]))
        fills.append(sum(times) + sum(hops))
    # Stages of one host share its cores.
    crowded = max(facts.slowdown(_running(busy[host], beats)) for host in busy)
    rate = sum(1 / beat for beat in beats) / crowded
    last = max(0, ceil(total / len(routes)) - 1) * len(routes) / rate
    run = crowded * max(fills) + OVERHEAD + last
    prepared = makespan(facts, forward=False)
    cores = (facts.cores or facts.threads) * len(facts.hosts)
    work = sum(busy.values()) * total / len(routes)
    work = facts.core_share * (work + facts.rows * facts.prepare_seconds)
    on_device = any(worker.one_at_a_time for route in routes for worker in route)
    computed = 0.0 if on_device else work / cores
    return START + max(run, prepared, computed, facts.partitions * TASK)


def _running(busy: float, beats: Sequence[float]) -> float:
    """Return how many forwards run at once on a host, on average."""
    return busy / (sum(beats) / len(beats))


def shards(facts: JobFacts) -> list[Alternative]:
    """Project layers whose weights several workers share."""
    able = holders(facts)
    first = Layout(shards=SHARDS[0])
    if not facts.blocks:
        return [_refused("shards", first, facts, facts.uncut)]
    if not any(block.divisible for block in facts.blocks):
        why = "it has no weights that shards could divide"
        return [_refused("shards", first, facts, why)]
    rooms = sorted((worker.room for worker in able), reverse=True)
    found = []
    for number in SHARDS:
        layout = Layout(shards=number)
        memory = need(in_shards(facts.blocks, number))
        if len(able) < number:
            why = f"needs {number} workers; there are {len(able)}"
            found.append(_refused("shards", layout, facts, why))
        elif memory > rooms[number - 1]:
            why = (
                f"needs {in_bytes(memory)} on each of {number} workers; one of them "
                f"has {in_bytes(rooms[number - 1])}"
            )
            found.append(_refused("shards", layout, facts, why))
        else:
            found.append(_sharded(facts, able, number, memory))
    # Of the refused ones the last with enough workers says most.
    enough = sum(number <= len(able) for number in SHARDS)
    return [a for a in found if not a.refused] or [found[max(0, enough - 1)]]


def _sharded(
    facts: JobFacts, able: Sequence[WorkerFacts], number: int, memory: int
) -> Alternative:
    parts = in_shards(facts.blocks, number)
    nbytes = sum(part.nbytes for part in parts)
    # Time goes by the weights, as of blocks; then shards wait for each other.
    share = nbytes / max(1, sum(block.nbytes for block in facts.blocks))
    exchanges = sum(block.exchanges for block in facts.blocks)
    values = sum(block.cut_bytes for block in facts.blocks) / ROWS / len(facts.blocks)
    moved = 2 * (number - 1) / number * exchanges * values / facts.link.bandwidth
    waits = exchanges * (EXCHANGE + facts.link.latency)
    shared = replace(
        facts,
        row_seconds=share * facts.row_seconds + moved,
        call_seconds=share * facts.call_seconds + waits,
    )
    fits = sorted((w for w in able if w.room >= memory), key=lambda w: -w.speed)
    groups = len(fits) // number
    held = fits[: groups * number]
    slowest = replace(held[-1], host="")
    crowded = max(facts.slowdown(n) for n in Counter(w.host for w in held).values())
    return Alternative(
        "shards",
        Layout(shards=number),
        facts.resources,
        replicas=groups,
        workers=groups * number,
        memory=memory,
        room=min(worker.room for worker in held),
        load=FORMING + facts.loading(nbytes),
        run=crowded * _streamed(shared, [[slowest]] * groups, [[1.0]] * groups),
    )


def _refused(kind: str, layout: Layout, facts: JobFacts, why: str) -> Alternative:
    return Alternative(kind, layout, facts.resources, refused=why)  # type: ignore[arg-type]


def _cause(error: PlacementError) -> str:
    """Return the cause without the remedy."""
    return str(error).rpartition(": ")[0] or str(error)
