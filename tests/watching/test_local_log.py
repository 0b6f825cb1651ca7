"""The line that ends a job where there is no cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask.callbacks import Callback

from dask_infer.errors import InferError


def double(values: np.ndarray) -> np.ndarray:
    if 300 in values:
        raise ValueError("no 300")
    return 2 * values


def halve(values: np.ndarray) -> np.ndarray:
    return values / 2


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Lines about jobs of this file that ended, as they come.

    A cluster of other tests may have its scheduler in this process, which logs theirs.
    """
    active = set(Callback.active)
    found: list[str] = []

    def emit(record: logging.LogRecord) -> None:
        if (line := record.getMessage()).startswith(("double-", "halve-")):
            found.append(line)

    handler = logging.Handler()
    handler.emit = emit  # type: ignore[method-assign]
    log = logging.getLogger("dask_infer.dashboard.job_log")
    with caplog.at_level(logging.INFO, log.name):
        log.addHandler(handler)
        yield found
    log.removeHandler(handler)
    Callback.active = active


def predict(rows: int, model: Callable[..., np.ndarray] = double) -> dd.Series:
    ddf = dd.from_pandas(pd.DataFrame({"a": np.arange(float(rows))}), npartitions=4)
    return ddf["a"].infer.predict(model, meta="float64")


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_each_computation_logs_what_it_predicted(
    lines: list[str], scheduler: str
) -> None:
    pred = predict(200)
    for _ in range(2):
        pred.compute(scheduler=scheduler)
    assert len(lines) == 2
    for line in lines:  # the second run, too, has its own rows only
        assert line.startswith("double-") and ": 200 rows in " in line
        assert "; " in line and line.endswith(".")  # a cause and a remedy


def test_two_models_have_a_line_each(lines: list[str]) -> None:
    first, second = predict(80), predict(40, halve)
    dd.concat([first, second]).compute(scheduler="threads")
    assert sorted(line.split(": ")[1].split()[0] for line in lines) == ["40", "80"]


def test_a_job_that_fails_says_how_far_it_came(lines: list[str]) -> None:
    with pytest.raises(InferError, match="no 300"):
        predict(1000).compute(scheduler="sync")  # in the second of four partitions
    (line,) = lines
    assert ": 250 rows in " in line or ": 500 rows in " in line


@pytest.mark.slow
def test_processes_count_on_their_own(lines: list[str]) -> None:
    assert len(predict(80).compute(scheduler="processes", num_workers=1)) == 80
    assert not lines


def test_nothing_is_registered_where_no_log_is_read() -> None:
    before = set(Callback.active)
    predict(8).compute(scheduler="sync")
    assert Callback.active == before


def test_other_computations_log_nothing(lines: list[str]) -> None:
    predict(8).compute(scheduler="sync")
    lines.clear()
    dd.from_pandas(pd.DataFrame({"a": [1, 2]}), 1).sum().compute(scheduler="sync")
    assert not lines
