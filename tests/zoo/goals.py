"""All results of the zoo, once a process, and how many of each outcome may be."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from operator import itemgetter

import torch

from tests.zoo import boosters, estimators, stages, transformer
from tests.zoo.judge import Result, judge, run
from tests.zoo.reasons import explained

#: Of the cases that run, those whose columns need no ``meta=``.
INFERRED = 0.97


@functools.cache
def of_estimators() -> list[Result]:
    """Results of scikit-learn."""
    return list(map(explained, run(estimators.cases())))


@functools.cache
def of_boosters() -> list[Result]:
    """Results of XGBoost, LightGBM and CatBoost."""
    return list(map(explained, run(boosters.cases())))


@functools.cache
def of_transformers() -> list[Result]:
    """Results of transformers, data-parallel."""
    return in_two_processes("cases")


@functools.cache
def of_generate() -> list[Result]:
    """Results of `generate`."""
    return in_two_processes("generated")


@functools.cache
def of_stages() -> list[Result]:
    """Results of transformers in two stages."""
    return in_two_processes("stages")


def in_two_processes(part: str) -> list[Result]:
    """Judge one half of a part of the catalogue in each of two processes."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        halves = pool.map(judge_half, (part, part), (0, 1))
    numbered = sorted((pair for half in halves for pair in half), key=itemgetter(0))
    return [explained(result) for _, result in numbered]


def judge_half(part: str, half: int) -> list[tuple[int, Result]]:
    """Judge what `halved` gives."""
    torch.set_num_threads(1)
    return [(number, judged()) for number, judged in halved(part, half)]


def halved(part: str, half: int) -> Iterator[tuple[int, Callable[[], Result]]]:
    """Yield the trials of every other class; one that was built serves all of its."""
    trials: list[tuple[str, Callable[[], Result]]]
    if part == "stages":
        trials = [(each[0], partial(stages.judge, *each)) for each in stages.chosen()]
    else:
        cases = transformer.cases() if part == "cases" else transformer.generated()
        trials = [(case.name, partial(judge, case)) for case in cases]
    order = {name: place for place, (name, *_) in enumerate(transformer.classes())}
    for number, (name, judged) in enumerate(trials):
        if order[name.partition(",")[0].partition(".")[0]] % 2 == half:
            yield number, judged


def everything() -> list[Result]:
    """Return all results."""
    parts = (of_estimators, of_boosters, of_transformers, of_generate, of_stages)
    return [result for part in parts for result in part()]


def faults(results: list[Result]) -> list[str]:
    """Return what must not be: wrong, late, and outcomes that no reason explains."""
    return [
        f"{result.outcome}: {result.name}: {result.detail[:300]}"
        for result in results
        if result.outcome in ("wrong", "late", "broken")
        or (result.outcome != "inferred" and not result.reason)
    ]


def share_inferred(results: list[Result]) -> float:
    """Return the share of right cases that needed no ``meta=``."""
    counts = Counter(result.outcome for result in results)
    return counts["inferred"] / (counts["inferred"] + counts["meta"])
