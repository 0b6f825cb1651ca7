"""Layouts on workers of their own, fed by the partitions: replicas, stages, shards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from dask_infer.errors import PlacementError
from dask_infer.plan.facts import BANDWIDTH, WorkerFacts, transfer_seconds
from dask_infer.plan.layouts.alternative import Alternative, Kind
from dask_infer.plan.layouts.job_facts import START, TASK, JobFacts, room, with_margin
from dask_infer.plan.layouts.local_layouts import makespan
from dask_infer.plan.layouts.shards import (
    EXCHANGE,
    in_shards,
    plan_layout,
    share_of_shard,
)
from dask_infer.plan.microbatch_size import OVERHEAD, ROWS, fewest_rows
from dask_infer.plan.min_stages import min_stages
from dask_infer.plan.replicas import count_replicas
from dask_infer.plan.stage_plan import StagePlan
from dask_infer.plan.units import count, in_bytes
from dask_infer.spec import Layout

#: Numbers of stages that are compared before only powers of two are.
EVERY_STAGES = 8
#: Seconds until workers of their own are found and their stages started, before these
#: load.
FORMING = 0.1
#: Workers that share a layer, as they are compared; where none of these fit, the fewest
#: that do.
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
        run=_streamed(
            facts,
            [[[worker]] for worker in able],
            [_Step(facts.call_seconds, facts.row_seconds)],
        ),
    )


def stages(facts: JobFacts) -> list[Alternative]:
    """Project pipelines, by their number of stages."""
    able, asked_for = holders(facts), Layout(stages="auto")
    if facts.uncut or not able:
        return [_refused(asked_for, facts, facts.uncut or _none_left(facts))]
    try:
        least = max(2, min_stages(facts.blocks, able))
    except PlacementError as error:
        return [_refused(asked_for, facts, _cause(error))]
    most = min(len(facts.blocks), len(able))
    if most < least:
        why = (
            f"needs 2 workers and 2 blocks; there are {count(len(able), 'worker')} "
            f"and {count(len(facts.blocks), 'block')}"
        )
        return [_refused(Layout(stages=2), facts, why)]
    numbers = [
        number
        for number in range(least, most + 1)
        if number - least < EVERY_STAGES or number == most or not number & (number - 1)
    ]
    return [_divided(facts, able, Layout(stages=number)) for number in numbers]


def shards(facts: JobFacts) -> list[Alternative]:
    """Project layers whose weights several workers share, in stages where needed."""
    able, asked_for = holders(facts), Layout(shards="auto")
    why = "" if able else _none_left(facts)
    if not facts.blocks:
        why = facts.uncut
    elif not any(block.divisible for block in facts.blocks):
        why = "it has no weights that shards could divide"
    if why:
        return [_refused(asked_for, facts, why)]
    asked = [Layout(stages="auto", shards=number) for number in SHARDS]
    found = [_divided(facts, able, layout) for layout in asked]
    fitting = [each for each in found if not each.refused]
    return fitting or [_divided(facts, able, Layout(stages="auto", shards="auto"))]


def _divided(
    facts: JobFacts, able: Sequence[WorkerFacts], layout: Layout
) -> Alternative:
    """Project replicas that several workers hold together, in stages or shards."""
    try:
        plan = plan_layout(layout, facts.blocks, able)
    except PlacementError as error:
        asked = layout if layout.shards == 1 else Layout(shards=layout.shards)
        return _refused(asked, facts, _cause(error))
    number, shards = len(plan.stages), plan.shards
    by_address = {worker.address: worker for worker in able}
    first = [by_address[address] for address in plan.workers]
    others = [worker for worker in able if worker.address not in plan.workers]
    parts = in_shards(facts.blocks, shards)
    replicas = count_replicas(parts, able, plan.bounds, shards)
    crews = [first, *_batched(others, len(first))][:replicas]
    biggest = max(range(number), key=lambda i: plan.stages[i].memory)
    most = max(stage.nbytes for stage in plan.stages)
    stored = len(crews) * facts.nbytes / facts.store_rate
    layout = Layout(stages=number, shards=shards)
    return Alternative(
        _kind(layout),
        layout,
        facts.resources,
        replicas=len(crews),
        workers=len(first) * len(crews),
        memory=plan.stages[biggest].memory,
        room=min(w.room for w in [*_batched(first, shards)][biggest]),
        load=FORMING + max(most / facts.load_rate, stored),
        run=_streamed(
            facts, [[*_batched(crew, shards)] for crew in crews], _steps(facts, plan)
        ),
    )


def _batched(
    workers: Sequence[WorkerFacts], number: int
) -> Iterator[Sequence[WorkerFacts]]:
    """Return consecutive workers, so many at a time."""
    for start in range(0, len(workers) - number + 1, number):
        yield workers[start : start + number]


@dataclass(frozen=True)
class _Step:
    """What one stage, or each of its shards, does for a microbatch."""

    #: Seconds on a worker of speed 1, whatever the rows and of each row.
    call: float
    row: float
    #: Seconds of exchanges with other shards, whatever the rows and of each row.
    wait: float = 0.0
    moved: float = 0.0
    #: Bytes of a row that enter it.
    entering: float = 0.0

    def on(self, workers: Sequence[WorkerFacts]) -> tuple[float, float]:
        """Return its seconds there, whatever the rows and of each row."""
        speed = min(worker.speed for worker in workers)
        return self.call / speed + self.wait, self.row / speed + self.moved


def _steps(facts: JobFacts, plan: StagePlan) -> list[_Step]:
    """Return what the stages of a plan do.

    The time of a shard goes by its weights; then shards wait for each other.
    """
    whole = sum(block.seconds for block in facts.blocks) or 1.0
    shards, measured = plan.shards, facts.sharded_seconds.get(plan.shards)
    values = sum(block.cut_bytes for block in facts.blocks) / ROWS / len(facts.blocks)
    moved = 2 * (shards - 1) / shards * values / BANDWIDTH
    steps = []
    for stage in plan.stages:
        blocks = facts.blocks[stage.start : stage.stop]
        entering = stage.cut_bytes / ROWS
        if measured is not None:
            share = sum(block.seconds for block in blocks) / whole
            steps.append(_Step(0.0, share * measured, entering=entering))
            continue
        seconds = sum(b.seconds * share_of_shard(b, shards) for b in blocks)
        exchanges = sum(b.exchanges for b in blocks) if shards > 1 else 0
        steps.append(
            _Step(
                seconds / whole * facts.call_seconds,
                seconds / whole * facts.row_seconds,
                exchanges * EXCHANGE,
                exchanges * moved,
                entering,
            )
        )
    return steps


def _streamed(
    facts: JobFacts,
    routes: Sequence[Sequence[Sequence[WorkerFacts]]],
    steps: Sequence[_Step],
) -> float:
    """Seconds until microbatches of all rows have passed one of the routes.

    Parameters
    ----------
    routes
        Of each replica the workers of each stage: its shards.
    steps
        What the stages of each replica do.
    """
    costs = [
        [step.on(team) for team, step in zip(route, steps, strict=True)]
        for route in routes
    ]
    call, row = max((c for each in costs for c in each), key=lambda c: c[0] + c[1])
    best = fewest_rows(OVERHEAD + call, row)
    # A partition is cut into equal microbatches of about that size.
    each = max(1, round(facts.part / best))
    size = facts.part / each
    total = facts.partitions * each
    busy: dict[str, float] = defaultdict(float)
    beats, fills = [], []
    hops = [transfer_seconds(step.entering * size) for step in steps[1:]]
    for route, cost in zip(routes, costs, strict=True):
        times = [call + size * row for call, row in cost]
        for team, seconds in zip(route, times, strict=True):
            for worker in team:
                busy[worker.host] += seconds
        beats.append(OVERHEAD + max([*times, *hops]))
        fills.append(sum(times) + sum(hops))
    # Stages of one host share its cores.
    beat = sum(beats) / len(beats)
    crowded = max(facts.slowdown(seconds / beat) for seconds in busy.values())
    rate = sum(1 / beat for beat in beats) / crowded
    last = max(0, ceil(total / len(routes)) - 1) * len(routes) / rate
    run = crowded * max(fills) + OVERHEAD + last
    prepared = makespan(facts, forward=False)
    cores = (facts.cores or facts.threads) * len(facts.hosts)
    work = sum(busy.values()) * total / len(routes)
    work = facts.core_share * (work + facts.rows * facts.prepare_seconds)
    on_device = any(w.one_at_a_time for route in routes for team in route for w in team)
    computed = 0.0 if on_device else work / cores
    return START + max(run, prepared, computed, facts.partitions * TASK)


def _kind(layout: Layout) -> Kind:
    return "stages" if layout.shards == 1 else "shards"


def _refused(layout: Layout, facts: JobFacts, why: str) -> Alternative:
    return Alternative(_kind(layout), layout, facts.resources, refused=why)


def _cause(error: PlacementError) -> str:
    """Return the cause without the remedy."""
    return str(error).rpartition(": ")[0] or str(error)
