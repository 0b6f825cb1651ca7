"""The layouts of several models on the same rows: what one takes the others have not.

Whole replicas are in every process beside each other. Models on workers of their own
divide these workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dask_infer.plan.layouts.alternative import Alternative
from dask_infer.plan.layouts.choose import alternatives, choose
from dask_infer.plan.layouts.job_facts import MARGIN, START, TASK, JobFacts
from dask_infer.plan.replicas import next_replica

#: Layouts in the processes of the partitions, whose models run one after the other.
LOCAL = ("data", "sweep")


@dataclass(frozen=True)
class Choice:
    """The layouts of one model, and the one that is chosen; None where none fits."""

    found: list[Alternative]
    chosen: Alternative | None

    @property
    def is_apart(self) -> bool:
        """Whether the model needs workers of its own."""
        return self.chosen is None or self.chosen.kind not in LOCAL

    @property
    def in_each_process(self) -> int:
        """Bytes that stay in every process; a sweep makes room for other models."""
        chosen = self.chosen
        return chosen.memory if chosen is not None and chosen.kind == "data" else 0


def choose_together(jobs: Sequence[JobFacts]) -> list[Choice]:
    """Return the choice for each model of a job.

    The smaller a model, the sooner it has its place in every process. Those that need
    workers of their own first divide them evenly, to find what each takes. Then what is
    left goes to the slowest, as it does while the job runs.
    """
    jobs = [_one_each(job, len(jobs)) for job in jobs]
    choices: dict[int, Choice] = {}
    taken = 0
    for place in sorted(range(len(jobs)), key=lambda place: jobs[place].whole):
        choices[place] = _choice(_beside(jobs[place], taken))
        taken += choices[place].in_each_process
    held: set[str] = set()
    for group in _groups_apart(jobs, choices):
        # A worker that holds another model is free only for its other resources.
        if held and not jobs[group[0]].resources:
            for place in group:
                jobs[place] = _without(jobs[place], held)
        elif len(group) == 1:  # it has all of them
            held |= _first_workers(jobs, group, choices)
            continue
        for turn, place in enumerate(group):
            share = _share(_beside(jobs[place], taken), turn, len(group))
            choices[place] = _choice(share)
            taken += choices[place].in_each_process
        _share_out(jobs, [p for p in group if choices[p].is_apart], choices)
        held |= _first_workers(jobs, group, choices)
    return [choices[place] for place in range(len(jobs))]


def seconds_together(choices: Sequence[Choice], partitions: int) -> float:
    """Return the seconds of a job of several models, all of which have a layout.

    Models in the processes of the partitions run one after the other, all others at
    the same time.
    """
    chosen = [each.chosen for each in choices if each.chosen is not None]
    local = [each for each in chosen if each.kind in LOCAL]
    apart = [each.total for each in chosen if each.kind not in LOCAL]
    floor = START + partitions * TASK  # of the scheduler, whatever the models
    runs = sum(each.run - START for each in local if each.run > floor)
    here = sum(each.load for each in local) + max(floor, START + runs)
    return max([here, *apart])


def _choice(facts: JobFacts) -> Choice:
    found = alternatives(facts)
    return Choice(found, choose(found))


def _beside(facts: JobFacts, taken: int) -> JobFacts:
    """Return the facts where every process holds so many bytes of other models."""
    if not taken:
        return facts
    less = int(taken / (1 - MARGIN))
    workers = tuple(
        w if w.memory is None else replace(w, memory=max(0, w.memory - less))
        for w in facts.workers
    )
    return replace(facts, workers=workers)


def _one_each(facts: JobFacts, models: int) -> JobFacts:
    """Return the facts where a worker holds each model once.

    A resource may be counted in bytes.
    """
    workers = tuple(replace(w, holds=min(w.holds, models)) for w in facts.workers)
    return replace(facts, workers=workers)


def _groups_apart(
    jobs: Sequence[JobFacts], choices: dict[int, Choice]
) -> list[list[int]]:
    """Return the models that need workers with the same resources, the largest first.

    Those that need most resources choose first, as they do when they are placed.
    """
    groups: dict[object, list[int]] = {}
    for place, choice in reversed(choices.items()):
        if choice.is_apart:
            groups.setdefault(jobs[place].resources, []).append(place)
    return sorted(groups.values(), key=lambda group: -len(jobs[group[0]].resources))


def _first_workers(
    jobs: Sequence[JobFacts], group: Sequence[int], choices: dict[int, Choice]
) -> set[str]:
    """Return as many of the workers as the first replicas of a group's models hold."""
    chosen = [choices[place].chosen for place in group if choices[place].is_apart]
    number = sum(each.workers_each for each in chosen if each is not None)
    workers = jobs[group[0]].workers
    return {*[w.address for w in workers for _ in range(w.holds)][:number]}


def _without(facts: JobFacts, held: set[str]) -> JobFacts:
    """Return the facts where these workers hold no model more."""
    workers = tuple(
        replace(w, holds=0) if w.address in held else w for w in facts.workers
    )
    return replace(facts, workers=workers)


def _share(facts: JobFacts, turn: int, number: int) -> JobFacts:
    """Return the facts where a model may be on its share of the workers alone."""
    places = [w.address for w in facts.workers for _ in range(w.holds)]
    own = Counter(places[turn::number])
    workers = tuple(replace(w, holds=own[w.address]) for w in facts.workers)
    return replace(facts, workers=workers)


def _share_out(
    jobs: Sequence[JobFacts], group: Sequence[int], choices: dict[int, Choice]
) -> None:
    """Give each model of a group its replicas, the next one always to the slowest."""
    able = {place: each for place in group if (each := choices[place].chosen)}
    if not able:
        return
    left = sum(worker.holds for worker in jobs[next(iter(able))].workers)
    replicas = {place: 0 for place in able}
    alone = {place: each.run * each.replicas for place, each in able.items()}
    growing = []
    for place, each in able.items():
        fixed = each.layout.replicas != "auto"
        replicas[place] = each.replicas if fixed else 1
        left -= replicas[place] * each.workers_each
        growing += [] if fixed else [place]
    while growing:
        slowest = growing[
            next_replica([alone[p] for p in growing], [replicas[p] for p in growing])
        ]
        if able[slowest].workers_each > left:
            growing.remove(slowest)
            continue
        replicas[slowest] += 1
        left -= able[slowest].workers_each
    for place, each in able.items():
        shared = replace(
            each,
            replicas=replicas[place],
            workers=replicas[place] * each.workers_each,
            run=alone[place] / replicas[place],
        )
        found = [shared if a is each else a for a in choices[place].found]
        choices[place] = Choice(found, shared)
