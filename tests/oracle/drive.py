"""Thousands of draws from a seed: models at random, a few draws of each in one layout.

Hypothesis alone would stay with a model for long, as it varies what it drew before. A
failing draw is shrunk by it. Seed and count repeat a run exactly. The draws of a model
in a layout share what it takes to divide it, and to load it on other workers.
"""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from dask_infer import Layout
from tests.oracle.requests import LOCAL, WEIGHTED, Draw, draws

#: Draws of a model before the next one's turn.
EACH = 10


def drive(
    first: int,
    count: int,
    check: Callable[[Draw], None],
    names: Sequence[str] = WEIGHTED,
    layouts: Sequence[Layout | str] = LOCAL,
    each: int = EACH,
) -> None:
    """Call `check` with `count` draws, `each` of a model in a layout.

    Elsewhere every third of them holds resources.
    """
    chance = random.Random(first)
    for place in range(-(-count // each)):
        name, layout = chance.choice(names), chance.choice(layouts)
        resources = layouts is not LOCAL and chance.random() < 1 / 3

        @seed(first * 1_000_003 + place)
        @settings(
            max_examples=min(each, count),
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        @given(draws(name, layout, resources))
        def checked(draw: Draw) -> None:
            check(draw)

        checked()


@contextmanager
def settled(store: str | None) -> Iterator[None]:
    """Rows may fail in any number; one thread a forward, and no log of each row.

    In a content store of thousands of entries each new one takes long: `store` is an
    empty directory, or None for that of the session.
    """
    config: dict[str, Any] = {"infer.errors.max-fraction": 1.0, "num_workers": 2}
    if store is not None:
        config["infer.store.path"] = store
    logger, threads = logging.getLogger("dask_infer"), torch.get_num_threads()
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    try:
        with dask.config.set(config), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NaN in the models' own arithmetic
            yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)
