"""What partitions count for Dask's own pages, and what they do without."""

from __future__ import annotations

import time

import dask.dataframe as dd
import pandas as pd
import pytest
import torch
from distributed import Client


class Sleepy(torch.nn.Linear):
    """A forward that is long enough to be shown."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.005)
        return super().forward(x)


def predict() -> dd.DataFrame:
    ddf = dd.from_pandas(pd.DataFrame({"a": range(100)}, dtype="float32"), 2)
    return ddf.infer.predict(Sleepy(1, 1), columns=["a"])


def fine_metrics(client: Client) -> set[str]:
    """Names of activities in tasks of predictions."""
    keys = client.run_on_scheduler(
        lambda dask_scheduler: list(dask_scheduler.cumulative_worker_metrics)
    )
    return {key[2] for key in keys if isinstance(key, tuple) and "Sleepy" in key[1]}


def test_parts_of_a_partition_are_in_the_fine_metrics_of_dask(client: Client) -> None:
    predict().compute()
    deadline = time.monotonic() + 60
    while "infer-forward" not in (found := fine_metrics(client)):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert "infer-read" not in found  # is the task's own


def test_a_counter_that_fails_fails_no_forward(
    threaded_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dask_infer.replica import partition_counters

    def fail(seconds: object) -> None:
        raise AttributeError("context_meter")

    monkeypatch.setattr(partition_counters, "count_in_fine_metrics", fail)
    assert len(predict().compute()) == 100
