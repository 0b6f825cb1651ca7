"""Values are those of each row alone, however the model is spread over workers.

The draws are those of `test_oracle`, with layouts: each model of several layers in all
of them, every other model on a worker elsewhere, or refused. `ORACLE_SEED` chooses the
draws, `ORACLE_LAYOUTS` how many there are.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import dask
import pandas as pd
import pytest
from distributed import Client

import dask_infer
from tests.oracle.compare import Compute, check
from tests.oracle.drive import drive, settled
from tests.oracle.requests import ELSEWHERE, LAYERED, RESOURCES, SPREAD
from tests.pipeline.conftest import workers

SEED = int(os.environ.get("ORACLE_SEED", "0"))
DRAWS = int(os.environ.get("ORACLE_LAYOUTS", "250"))

#: Draws of a model in a layout: to form a group takes as long as ten of them.
EACH = 25


@pytest.fixture(scope="module")
def client(store: Any) -> Iterator[Client]:
    with workers(*[RESOURCES] * 4) as cluster, Client(cluster) as client:
        yield client


def run(count: int, compute: Compute, names: Sequence[str] = SPREAD) -> None:
    print(f"repeat by ORACLE_SEED={SEED}")
    with settled(None), dask.config.set({"infer.placement.grace": "60 s"}):
        drive(SEED, count, lambda d: check(d, compute, 1), names, ELSEWHERE, EACH)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_row_is_as_alone_in_every_layout(client: Client) -> None:
    run(DRAWS, lambda collection, _: collection.compute())


class Together:
    """Runs each job beside the one before, whose result is known.

    Mostly both use one group; else the one may need the workers that the other has.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.before: tuple[Any, Any] | None = None

    def __call__(self, collection: Any, scheduler: str) -> Any:
        future, before = self.client.compute(collection), self.before
        self.before = None
        if before is not None:
            same(self.client.compute(before[0]).result(), before[1])
        result = future.result()
        self.before = collection, result
        return result


def same(one: Any, other: Any) -> None:
    """Compare results, whose batches may have been others."""
    frames = [pd.DataFrame(each) for each in (one, other)]
    pd.testing.assert_frame_equal(*frames, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_jobs_at_once(client: Client) -> None:
    run(DRAWS // 5, Together(client), LAYERED)


class Killing:
    """Kills a worker that holds a part of a model, at any moment of each tenth job."""

    def __init__(self, client: Client) -> None:
        self.client, self.chance = client, random.Random(SEED)
        self.jobs = self.kills = 0

    def __call__(self, collection: Any, scheduler: str) -> Any:
        self.jobs += 1
        held = list(dask_infer.replicas(self.client).worker)
        if not held or self.jobs % 10:
            return collection.compute()
        address = self.chance.choice(held)
        nannies = self.client.cluster.workers.values()
        (pid,) = {nanny.pid for nanny in nannies if nanny.worker_address == address}
        delay = self.chance.uniform(0, 0.1)
        timer = threading.Timer(delay, os.kill, (pid, signal.SIGKILL))
        timer.start()
        try:
            return collection.compute()
        finally:
            timer.join()
            self.kills += 1
            self.client.wait_for_workers(4, timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_workers_are_killed(client: Client) -> None:
    killing = Killing(client)
    run(DRAWS // 8, killing, LAYERED)
    assert killing.kills
