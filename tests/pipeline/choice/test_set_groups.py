"""The workers that are left beside models whose layout the call sets."""

from __future__ import annotations

import pytest

from dask_infer.pipeline.choice.gather_facts import Gatherer
from dask_infer.pipeline.choice.set_groups import beside_groups
from dask_infer.spec import AutoSpec, GroupSpec, Layout, ModelSpec

GPU = (("GPU", 1.0),)
MODEL = ModelSpec("key", "model", "module", nbytes=1000)


def cluster(gpus):
    return {
        f"tcp://{number}:1": {
            "resources": {"GPU": each} if each else {},
            "nthreads": 1,
            "memory_limit": 8 * 10**9,
        }
        for number, each in enumerate(gpus)
    }


def group(resources=(), **layout):
    return GroupSpec(MODEL, Layout(**layout), resources)


@pytest.mark.parametrize(
    ("gpus", "groups", "of_gpus", "of_any"),
    [
        ([1, 1, 0], [], [1, 1, 0], [1, 1, 1]),
        ([1, 1, 0], [group(GPU)], [0, 1, 0], [0, 1, 1]),
        ([1, 1, 0], [group(GPU, replicas=2)], [0, 0, 0], [0, 0, 1]),
        ([2, 1, 0], [group(GPU), group(GPU)], [0, 1, 0], [0, 1, 1]),
        ([0, 0, 0], [group(replicas=2)], [0, 0, 0], [0, 0, 1]),
        ([1, 0, 0], [group(replicas=1), group(GPU)], [0, 0, 0], [0, 0, 1]),
        ([1, 0, 0], [group(GPU, replicas=3)], [0, 0, 0], [0, 1, 1]),
        ([0, 0, 0], [group(GPU)], [0, 0, 0], [1, 1, 1]),
    ],
)
def test_table_of_what_each_worker_may_still_hold(gpus, groups, of_gpus, of_any):
    left = beside_groups(cluster(gpus), groups)
    gatherer = Gatherer(AutoSpec(group()), left, {})
    assert [gatherer.worker(each, GPU).holds for each in left] == of_gpus
    assert [gatherer.worker(each, ()).holds for each in left] == of_any


def test_without_a_cluster_there_is_nothing_to_hold():
    assert beside_groups({}, [group(GPU)]) == {}
