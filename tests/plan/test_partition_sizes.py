"""Warnings of partitions that are too small, too few or too large."""

import pytest

from dask_infer.plan.layouts.job_facts import TASK
from dask_infer.plan.partition_sizes import (
    COPIES,
    most_partitions,
    partition_warnings,
)
from dask_infer.plan.units import in_seconds

GIB = 2**30


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"rows": 10**9, "partitions": 5000, "workers": 1000}, []),
        ({"partitions": 5000, "row_seconds": 20e-6}, []),
        ({"partitions": 50_000, "row_seconds": 20e-6}, ["small"]),
        ({"partitions": 100, "row_seconds": 20e-6}, ["few"]),
        ({"partitions": 1000, "threads": 2}, ["few"]),
        ({"partitions": 1000, "threads": 2, "local": False}, []),
        ({"rows": 100, "partitions": 4, "workers": 2, "row_seconds": 20e-6}, []),
        ({"partitions": 1000, "row_bytes": 1000, "memory": 16 * GIB}, []),
        ({"partitions": 1000, "row_bytes": 10_000, "memory": 16 * GIB}, ["large"]),
        ({"partitions": 1000, "row_bytes": 10_000}, []),
        ({"partitions": 1, "workers": 1, "row_bytes": 1, "memory": GIB}, ["large"]),
        ({"partitions": 100_000, "workers": 4, "row_seconds": 20e-6}, []),
        ({"rows": 10**6, "partitions": 100_000, "workers": 4, "row_seconds": 20e-6},
         ["small"]),
        ({"rows": 0, "row_seconds": 1.0, "partitions": 10}, []),
        ({"workers": 0, "partitions": 10}, []),
        ({"partitions": 0}, []),
    ],
)  # fmt: skip
def test_table_of_warnings(options, problems):
    found = partition_warnings(**{"rows": 10**9, "workers": 1000} | options)
    assert len(found) == len(problems)
    for warning, problem in zip(found, problems, strict=True):
        assert f"partitions are too {problem}" in warning and "repartition" in warning


def test_what_is_advised_is_not_warned_of():
    job = {"rows": 10**9, "workers": 1000, "row_seconds": 20e-6}
    (warning,) = partition_warnings(partitions=10**6, **job)
    advised = int(warning.rpartition("=")[2].rstrip(")"))
    assert partition_warnings(partitions=advised, **job) == []
    sizes = {"rows": 10**9, "workers": 10, "row_bytes": 100, "memory": GIB}
    (warning,) = partition_warnings(partitions=10, **sizes)
    advised = int(warning.rpartition("=")[2].rstrip(")"))
    assert partition_warnings(partitions=advised, **sizes) == []
    assert partition_warnings(partitions=advised - 1, **sizes)


def test_a_warning_names_the_numbers():
    (warning,) = partition_warnings(10**9, 100_000, 1000, row_seconds=20e-6)
    assert "200.0 ms" in warning and in_seconds(TASK) in warning
    assert in_seconds(100_000 * TASK) in warning
    assert f"npartitions={int(20 / TASK)}" in warning
    (warning,) = partition_warnings(100, 1, 1, row_bytes=GIB, memory=30 * GIB)
    assert "100.0 GiB" in warning and "30.0 GiB" in warning
    assert f"npartitions={COPIES * 100 // 30}" in warning


def brute(seconds, workers):
    """The least time of any number of partitions, tried one by one."""
    return min(
        max(count * TASK, -(-count // workers) * seconds / count)
        for count in range(1, 3000)
    )


@pytest.mark.parametrize("workers", [1, 4, 30, 300])
@pytest.mark.parametrize("seconds", [0.01, 1.0, 30.0])
def test_the_most_partitions_are_near_the_least_time(seconds, workers):
    count = most_partitions(seconds, workers)
    taken = max(count * TASK, -(-count // workers) * seconds / count)
    # Beyond it the scheduler is the limit; up to it a rest of a round is lost at most.
    assert taken <= 2 * brute(seconds, workers)
    more = 2 * count
    assert max(more * TASK, seconds / workers) >= 0.99 * taken / 2
