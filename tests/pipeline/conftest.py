"""Clusters whose workers hold stages, and a model with layers to divide."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster

import dask_infer
from dask_infer.spec.group_spec import COORDINATOR

ROWS = 403


@contextlib.contextmanager
def workers(*resources: dict[str, float], threads: int = 1, **options: Any) -> Any:
    """Start a cluster of processes, one for each of `resources`."""
    spec = {
        number: {
            "cls": Nanny,
            "options": {"nthreads": threads, "resources": held, **options},
        }
        for number, held in enumerate(resources)
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"dashboard": False, "dashboard_address": ":0", "port": 0},
    }
    with SpecCluster(workers=spec, scheduler=scheduler, silence_logs=50) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def four(store: Any) -> Iterator[SpecCluster]:
    """Four workers of one thread: the first two have a GPU, as they say."""
    with workers({"GPU": 1}, {"GPU": 1}, {}, {}) as cluster:
        yield cluster


@pytest.fixture
def client(four: SpecCluster) -> Iterator[Client]:
    """A client of the four; afterwards nothing of any group is left."""
    with Client(four) as client:
        yield client
        client.wait_for_workers(4, timeout=60)
        dask_infer.unload(client=client)
        wait_until(lambda: not held(client))


@pytest.fixture
def pdf() -> pd.DataFrame:
    random = np.random.default_rng(5)
    values = random.normal(size=(ROWS, 2)).astype("float32")
    return pd.DataFrame(values, columns=["a", "b"], index=np.arange(ROWS) * 3)


@pytest.fixture
def ddf(pdf: pd.DataFrame) -> dd.DataFrame:
    return dd.from_pandas(pdf, npartitions=13)


@pytest.fixture
def model() -> torch.nn.Sequential:
    torch.manual_seed(11)
    layers: list[torch.nn.Module] = [torch.nn.Linear(2, 16)]
    for _ in range(4):
        layers += [torch.nn.Tanh(), torch.nn.Linear(16, 16)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(16, 1))


@pytest.fixture
def expected(pdf: pd.DataFrame, model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(pdf.to_numpy(copy=True)))[:, 0].numpy()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What models write into that count their forwards."""
    return tmp_path / "log"


def near(result: pd.DataFrame, expected: np.ndarray, pdf: pd.DataFrame) -> None:
    """Every row once, in its place, and right."""
    assert result.index.equals(pdf.index)
    np.testing.assert_allclose(result["prediction"], expected, atol=1e-5)


def wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def held(client: Client) -> list[str]:
    """Stage tasks that any worker has, and resources that are in use."""

    def look(dask_scheduler: Any) -> list[str]:
        workers = dask_scheduler.workers.values()
        tasks = [k for k in dask_scheduler.tasks if str(k).startswith("infer-")]
        used = [
            str(w.used_resources) for w in workers if any(w.used_resources.values())
        ]
        return [*map(str, tasks), *used]

    return client.run_on_scheduler(look)


def groups(client: Client) -> list[dict[str, Any]]:
    """What the coordinator knows: status, epochs and routes of every group."""

    def look(dask_scheduler: Any) -> list[dict[str, Any]]:
        coordinator = dask_scheduler.plugins.get(COORDINATOR)
        groups = coordinator.table if coordinator else []
        states = [group.state() for group in groups]
        return [
            {
                **dataclasses.asdict(state),
                "instances": [
                    {**each._asdict(), "route": each.route} for each in state.instances
                ],
            }
            for state in states
        ]

    return client.run_on_scheduler(look)
