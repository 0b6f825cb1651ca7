"""The runner of a group, from the group's state."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from dask_infer.pipeline.messages.group_state import GroupState, Target
from dask_infer.pipeline.worker.remote_runner import RemoteRunner
from dask_infer.spec import Blob, GroupSpec, Inputs, Job, ModelSpec, Outputs, UserCode

WHOLE = Target("whole", 0, (("a",),))
SHARDED = Target("sharded", 0, (("a", "c", "d"), ("b", "e", "f")))
#: Of three shards one is left.
LOST = Target("lost", 1, (("a",),), ready=False)


@pytest.mark.parametrize(
    ("instances", "kind"),
    [
        ([WHOLE], "cpu"),
        ([SHARDED], "cpu/3 shards"),
        ([LOST, SHARDED], "cpu/3 shards"),
    ],
)
def test_times_are_noted_for_as_many_shards_as_there_are(instances, kind):
    model = ModelSpec("key", "model", "module")
    job = Job(model, Inputs((), ()), Outputs(()), Blob("code", b""))
    job = replace(job, group=GroupSpec(model))
    client = SimpleNamespace(comms=SimpleNamespace(loop=None), sizes=None)
    state = GroupState(1, "ready", tuple(instances))
    runner = RemoteRunner(job, UserCode(), client, state, None)
    assert runner.observed_kind == kind
