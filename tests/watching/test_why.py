"""Six jobs that are slow for six reasons, on a real cluster, and the rule by itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster

import dask_infer
from dask_infer import Layout
from dask_infer.metrics.bottleneck import Bottleneck, find_bottleneck
from dask_infer.metrics.sums import Label, Sums, to_message
from dask_infer.watching.why import latest_records
from tests.conftest import QUIET


def slowly(frame: pd.DataFrame) -> pd.DataFrame:
    time.sleep(0.1)
    return frame


def slow_tokenizer(texts: list[str]) -> dict[str, Any]:
    time.sleep(0.3)
    return {"input_ids": np.ones((len(texts), 1), "int64")}


#: Arguments of a prediction whose tokenizer takes the time.
TOKENIZED = {"columns": "text", "tokenizer": slow_tokenizer, "meta": "float32"}


class Ids(torch.nn.Embedding):
    """A number for each text."""

    def __init__(self) -> None:
        super().__init__(2, 1)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids)[:, 0, 0]


class Wide(torch.nn.Module):
    """`work` multiplications of a large matrix."""

    def __init__(self, work: int = 1, size: int = 512) -> None:
        super().__init__()
        self.enter = torch.nn.Linear(2, size)
        self.layers = torch.nn.Sequential(
            *[torch.nn.Linear(size, size) for _ in range(work)]
        )
        self.leave = torch.nn.Linear(size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.leave(self.layers(self.enter(x)))


class Warm(torch.nn.Linear):
    """A model that is not measured."""

    def __init__(self) -> None:
        super().__init__(2, 1)


def numbers(rows: int, npartitions: int = 8) -> dd.DataFrame:
    values = np.random.default_rng(0).normal(size=(rows, 2)).astype("float32")
    frame = pd.DataFrame(values, columns=["a", "b"])
    return dd.from_pandas(frame, npartitions=npartitions)


def texts() -> dd.DataFrame:
    return dd.from_pandas(pd.DataFrame({"text": ["a"] * 20}), npartitions=2)


def tiny() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))


def job_of(client: Client, ddf: dd.DataFrame, model: Any, **options: Any) -> Bottleneck:
    # Else imports take all the time; a job of its own, not one beside the other.
    numbers(80).infer.predict(Warm(), columns=["a", "b"], output="y").compute()
    dask_infer.why()  # its numbers are there
    time.sleep(1.5)
    options = {"columns": ["a", "b"], "output": "y"} | options
    rows = len(ddf.infer.predict(model, **options).compute())
    answer = dask_infer.why()
    (job,) = answer.jobs
    assert job.rows == rows
    assert job.cause in repr(answer)
    assert job.remedy in repr(answer)
    return job


def test_a_big_model(client: Client) -> None:
    job = job_of(client, numbers(40_000), Wide(6))
    assert job.cause.startswith("compute-bound"), job
    assert "device=" in job.remedy
    assert job.rows == 40_000


def with_texts(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(text=[f"a text that is read, {i}" * 10 for i in frame.index])


def test_a_tiny_model(client: Client, tmp_path: Path) -> None:
    frame = numbers(60_000).map_partitions(with_texts)
    frame.to_parquet(tmp_path / "data", compression="gzip")
    # Read so often that one delay of a busy machine does not count.
    files = sorted(map(str, (tmp_path / "data").glob("*.parquet")))
    ddf = dd.read_parquet(files * 6)
    job = job_of(client, ddf, torch.nn.Linear(2, 1), keep=["text"])
    assert job.cause.startswith("starved"), job


def test_a_slow_preprocess(client: Client) -> None:
    options: dict[str, Any] = {"preprocess": slowly, "meta": "float32"}
    job = job_of(client, numbers(1000), tiny(), batch_size=50, **options)
    assert job.cause.startswith("starved: encoding"), job
    assert "preprocess=" in job.remedy


def test_a_slow_tokenizer(client: Client) -> None:
    """It was overhead: texts are tokenized before their first batch is made."""
    job = job_of(client, texts(), Ids(), **TOKENIZED)
    assert job.cause.startswith("starved: encoding"), job


def test_a_slow_read(client: Client) -> None:
    ddf = numbers(1000, 20)
    job = job_of(client, ddf.map_partitions(slowly, meta=ddf._meta), tiny())
    assert job.cause.startswith("starved: reading"), job
    assert "threads_per_worker=" in job.remedy


def test_making_a_worker_ready_is_loading(
    threaded_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was overhead, which hid what short jobs on new workers wait for."""
    from dask_infer.run import partition

    def slow(step: Any) -> Any:
        return lambda *args: time.sleep(0.3) or step(*args)

    for name in ("setup_worker", "read_code", "current_place"):
        monkeypatch.setattr(partition, name, slow(getattr(partition, name)))
    numbers(200).infer.predict(tiny(), columns=["a", "b"], output="y").compute()
    (job,) = dask_infer.why().jobs
    assert job.cause.startswith("starved: loading"), job


def test_one_process_has_an_answer_too() -> None:
    ddf = numbers(200)
    pred = ddf.infer.predict(
        tiny(), columns=["a", "b"], preprocess=slowly, meta="float32", output="y"
    )
    pred.compute(scheduler="sync")
    (job,) = dask_infer.why().jobs
    assert job.cause.startswith("starved: encoding")
    assert job.rows == 200


def test_a_slow_tokenizer_of_one_process() -> None:
    texts().infer.predict(Ids(), **TOKENIZED).compute(scheduler="sync")
    (job,) = dask_infer.why().jobs
    assert job.cause.startswith("starved: encoding")


def test_nothing_has_run() -> None:
    with LocalCluster(n_workers=1, processes=False, **QUIET) as c, Client(c) as client:
        answer = dask_infer.why(client)
    assert not answer.jobs
    assert repr(answer).startswith("No prediction has run yet.")


def test_an_asynchronous_client_gets_an_awaitable() -> None:
    async def run() -> Any:
        async with (
            LocalCluster(n_workers=1, processes=False, asynchronous=True, **QUIET) as c,
            Client(c, asynchronous=True) as client,
        ):
            await client.compute(
                numbers(100).infer.predict(tiny(), columns=["a", "b"], output="y")
            )
            return await dask_infer.why(client)

    (job,) = asyncio.run(run()).jobs
    assert job.rows == 100


# --- stages -----------------------------------------------------------------------


def stages_job(ddf: dd.DataFrame, model: Any, **options: Any) -> Bottleneck:
    with (
        LocalCluster(n_workers=3, threads_per_worker=1, **QUIET) as cluster,
        Client(cluster) as client,
    ):
        job = job_of(client, ddf, model, **options)
        dask_infer.unload()
        return job


@pytest.mark.slow
def test_lopsided_stages() -> None:
    model = torch.nn.Sequential(Wide(10), torch.nn.Linear(1, 1))
    layout = Layout(stages=["1"])
    job = stages_job(numbers(60_000), model, parallel=layout)
    assert job.cause.startswith("compute-bound in stage 0"), job
    assert "stages=" in job.remedy


@pytest.mark.slow
def test_tiny_microbatches_over_stages() -> None:
    job = stages_job(
        numbers(4000), tiny(), parallel=Layout(stages=2, microbatch=2), batch_size=2
    )
    assert job.cause.startswith("transfer-bound"), job
    assert "microbatch=" in job.remedy


def test_a_short_job_names_all_of_its_stages_at_once(client: Client) -> None:
    """The heartbeat with the forwards of one came after the last of the partitions."""
    layout = Layout(stages=2)
    pred = numbers(64).infer.predict(tiny(), columns=["a", "b"], parallel=layout)
    for _ in range(3):
        pred.compute()
        (job,) = dask_infer.why().jobs
        assert set(job.stages) == {0, 1}
    dask_infer.unload()


# --- the rule ---------------------------------------------------------------------


def record(
    seconds: dict[str, float],
    stages: dict[int, Sums] | None = None,
    host: dict[str, float] | None = None,
) -> dict[str, Any]:
    label = Label("Linear-1a2b3c4d", None, "5e6f")
    sums = Sums({"rows": 100}, seconds)
    during = {
        label._replace(stage=s, job=""): each for s, each in (stages or {}).items()
    }
    return {
        **{"model": label.model, "job": label.job, "running": False},
        **{"start": 0.0, "seen": 0.0, "end": 10.0, "host": host or {}},
        "sums": to_message({label: sums}),
        "stages": to_message(during),
    }


def stage(forward: float, inside: float = 0.0, at_stage: float = 0.0) -> Sums:
    counts = {"forwards": 10, "inside_seconds": inside, "stage_seconds": at_stage}
    seconds = {"forward": forward, "idle": 10 - forward}
    return Sums(counts, seconds, {"window": 4, "inside": 1} if inside else {})


@pytest.mark.parametrize(
    ("first", "second", "cause"),
    [
        (stage(9), stage(1), "compute-bound in stage 0, which is 90% busy; the others"),
        (stage(8.5), stage(9), "compute-bound in stage 1"),
        (stage(1, 35, 3), stage(1, 0, 3), "transfer-bound"),
        (stage(4, 38, 20), stage(5, 0, 16), "compute-bound: stages take turns"),
        (stage(1, 5, 3), stage(1, 0, 2), "starved: reading"),
    ],
)
def test_stages_by_the_rule(first: Sums, second: Sums, cause: str) -> None:
    found = find_bottleneck(record({"read": 2, "wait": 8}, {0: first, 1: second}))
    assert found.cause.startswith(cause)


def test_a_start_does_not_hide_that_threads_wait_for_a_window() -> None:
    """Of ten seconds six had passed before the first microbatch was sent."""
    entry, last = stage(1, 16, 1), stage(1, 0, 1)
    entry.counts["queued_seconds"] = 24
    waiting = record({"other": 1, "wait": 9}, {0: entry, 1: last})
    assert find_bottleneck(waiting).cause.startswith("transfer-bound")
    reading = record({"read": 6, "wait": 4}, {0: entry, 1: last})
    assert find_bottleneck(reading).cause.startswith("starved: reading")


def test_shards_that_exchange_are_no_stages_in_turn() -> None:
    exchanging = Sums({"forwards": 10}, {"forward": 1, "transfer": 7.5, "idle": 1.5})
    found = find_bottleneck(record({"wait": 9}, {0: exchanging}))
    assert found.cause == "transfer-bound: stages wait for messages"
    assert "shards=" in found.remedy
    computing = Sums({"forwards": 10}, {"forward": 4.5, "transfer": 4})
    found = find_bottleneck(record({"read": 9}, {0: computing}))
    assert found.cause.startswith("starved: reading")


def test_models_that_take_turns_run_together() -> None:
    def job(start: float, end: float, running: bool = False) -> dict[str, Any]:
        times = {"start": start, "end": end, "running": running}
        return {**record({"forward": 1}), **times}

    before, tower, head = job(0, 10), job(20, 99), job(20, 100, running=True)
    assert latest_records([before, tower, head]) == [tower, head]
    long_ago = job(20, 90)
    assert latest_records([long_ago, head]) == [head]
    head = job(99, 100, running=True)
    assert latest_records([job(0, 98), head]) == [head]
    tower, head = job(20, 98), job(20, 100)
    assert latest_records([before, tower, head]) == [tower, head]
    assert latest_records([before]) == [before]
    assert latest_records([]) == []


def test_a_tower_that_waits_for_another_is_not_starved() -> None:
    """It read for a tenth of the time, and was told to read fewer columns."""
    seconds = {"read": 1.0, "wait": 3.0, "idle": 6.0}
    for stages in ({0: stage(3, 8, 4)}, {}):
        found = find_bottleneck(record(seconds, stages))
        assert found.cause == "idle: other models of the same rows take longer"
    busy = find_bottleneck(record(seconds | {"idle": 0.5}, {0: stage(9)}))
    assert busy.cause.startswith("compute-bound in stage 0")


def test_activations_in_files_are_named() -> None:
    spilled = record({"transfer": 6, "forward": 4})
    assert "copies to the device" in find_bottleneck(spilled).cause
    ((*label, counts, seconds, levels),) = spilled["sums"]
    spilled["sums"] = [[*label, counts | {"spilled_bytes": 1e6}, seconds, levels]]
    assert "infer.sweep.activations" in find_bottleneck(spilled).remedy


def test_loading_is_a_cause_only_where_it_takes_most() -> None:
    assert "loading" in find_bottleneck(record({"load": 6, "forward": 4})).cause
    assert "compute" in find_bottleneck(record({"load": 5, "forward": 6})).cause


def test_a_busy_machine_is_named() -> None:
    host = {"cpu": 5.0, "busy": 19.0, "cores": 2}
    (note,) = find_bottleneck(record({"forward": 9}, host=host)).notes
    assert "95% of 2 cores" in note and "25% by the workers" in note
    idle = {"cpu": 5.0, "busy": 6.0, "cores": 2}
    assert not find_bottleneck(record({"forward": 9}, host=idle)).notes
