"""Several instances of a group: no microbatch waits while one is idle."""

import asyncio
import os

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

import dask_infer
from dask_infer import Layout
from dask_infer.pipeline.messages.microbatch import Target
from dask_infer.pipeline.worker.dispatcher import Dispatcher

from ..conftest import groups, near
from ..test_bugs import by_hand, slow
from ..test_loss import MICROBATCH, MICROBATCHES, Kills, stages_with

THREE = tuple(Target(name, 0, (f"tcp://{name}",)) for name in "abc")


def test_each_microbatch_goes_to_the_instance_with_the_fewest():
    async def run():
        dispatcher = Dispatcher()
        got = [await dispatcher._acquire(THREE, 2) for _ in range(6)]
        return [target.name for target in got], dispatcher

    names, dispatcher = asyncio.run(run())
    assert names == [*"abc", *"abc"]
    assert max(dispatcher.inside.values()) == 2


def test_what_waits_takes_the_first_place_that_is_free_in_its_order():
    async def run():
        dispatcher, order = Dispatcher(), []

        async def wait(number, among):
            async with dispatcher.place(among, 1) as target:
                order.append((number, target.name))

        for _ in THREE:
            await dispatcher._acquire(THREE, 1)
        tasks = [
            asyncio.create_task(wait(n, among))
            for n, among in enumerate([THREE[:1], THREE, THREE[2:]])
        ]
        await asyncio.sleep(0)
        for target in THREE[::-1]:
            dispatcher._release(target)
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        return order, dispatcher

    order, dispatcher = asyncio.run(run())
    assert order == [(1, "c"), (2, "c"), (0, "a")]
    assert not dispatcher.inside


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_place_is_not_lost_with_a_sender_that_gives_up(when):
    async def run():
        dispatcher = Dispatcher()
        await dispatcher._acquire(THREE[:1], 1)
        waits = asyncio.create_task(dispatcher._acquire(THREE[:1], 1))
        await asyncio.sleep(0)
        if when == "before":
            waits.cancel()
        dispatcher._release(THREE[0])
        waits.cancel()
        await asyncio.wait({waits})
        return dispatcher

    dispatcher = asyncio.run(run())
    assert not dispatcher.inside
    assert not dispatcher._waiting


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


@pytest.mark.parametrize("at", [1, MICROBATCHES // 2, MICROBATCHES])
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
