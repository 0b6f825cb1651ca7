"""Several instances of a group: no microbatch waits while one is idle."""

import os

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

import dask_infer
from dask_infer import Layout

from .conftest import groups, near
from .test_bugs import by_hand, slow
from .test_loss import IN_THE_MIDDLE, MICROBATCH, MICROBATCHES, Kills, stages_with


@pytest.mark.parametrize("partitions", [1, 4])
def test_a_microbatch_for_each_replica_keeps_them_all_busy(client, partitions):
    model = slow(0.5)
    pdf = pd.DataFrame(np.random.default_rng(1).normal(size=(80, 2)).astype("f4"))
    pdf.columns = ["a", "b"]
    ddf = dd.from_pandas(pdf, npartitions=partitions, sort=False)
    layout = Layout(replicas=4, microbatch=20)
    pred = ddf.infer.predict(model, parallel=layout)
    near(pred.compute(), by_hand(model, pdf), pdf)  # while replicas still load
    near(pred.compute(), by_hand(model, pdf), pdf)
    (group,) = groups(client)
    assert sum(instance["ready"] for instance in group["instances"]) == 4
    before = dask_infer.replicas().set_index("worker").rows
    near(pred.compute(), by_hand(model, pdf), pdf)
    after = dask_infer.replicas().set_index("worker").rows
    assert list(after - before) == [20] * 4


@pytest.mark.parametrize("at", IN_THE_MIDDLE)
def test_a_replica_of_several_is_killed(client, pdf, log, at):
    small = pdf.iloc[: MICROBATCH * MICROBATCHES]
    model = stages_with(Kills(log, at))(1)
    ddf = dd.from_pandas(small, npartitions=13, sort=False)
    layout = Layout(replicas=3, microbatch=MICROBATCH)
    pred = ddf.infer.predict(model, parallel=layout)
    expected = by_hand(model, small)
    log.with_name("log.armed").touch()
    near(pred.compute(), expected, small)
    assert os.path.getsize(log) > MICROBATCHES  # the one that killed was run again
