"""The ledger on a scheduler without workers."""

import asyncio
import contextlib

from distributed import Scheduler

from dask_infer.pipeline.scheduler.coordinator import Ledger
from dask_infer.pipeline.scheduler.group import Fleet
from dask_infer.spec import GroupSpec, ModelSpec
from dask_infer.spec.group_spec import LEDGER, Patience

PRELOAD = """
from dask_infer.pipeline.scheduler.coordinator import Ledger

def dask_setup(scheduler):
    scheduler.add_plugin(Ledger())
"""


@contextlib.asynccontextmanager
async def scheduler(**options):
    async with Scheduler(dashboard=False, port=0, **options) as scheduler:
        yield scheduler


def fleet_of(ledger, name, **patience):
    spec = GroupSpec(ModelSpec(name, "callable", name), patience=Patience(**patience))
    fleet = ledger.fleets[spec.key] = Fleet(spec)
    return fleet


def test_a_task_that_feeds_several_groups_leaves_them_all():
    # The first one released changed the groups that were gone through.
    async def run():
        async with scheduler() as running:
            await running.register_scheduler_plugin(Ledger(), LEDGER, idempotent=True)
            ledger = running.plugins[LEDGER]
            for name in "abc":
                fleet_of(ledger, name, idle=0).feeders.add("task")
            kept = fleet_of(ledger, "used")
            kept.feeders |= {"task", "other"}
            ledger.transition("task", "processing", "memory")
            return kept, dict(ledger.fleets)

    kept, fleets = asyncio.run(run())
    assert list(fleets.values()) == [kept]
    assert kept.feeders == {"other"}


def test_the_ledger_can_be_preloaded_and_is_registered_once():
    async def run():
        async with scheduler(preload=PRELOAD) as running:
            ledger = running.plugins[LEDGER]
            await asyncio.gather(
                *(
                    running.register_scheduler_plugin(Ledger(), LEDGER, idempotent=True)
                    for _ in range(3)
                )
            )
            assert running.plugins[LEDGER] is ledger
            assert running.handlers["infer_open"].__self__ is ledger
            return await running.handlers["infer_knows"](group="none")

    assert asyncio.run(run()) is False


def test_of_registrations_at_once_the_first_one_counts():
    async def run():
        async with scheduler() as running:
            await asyncio.gather(
                *(
                    running.register_scheduler_plugin(Ledger(), LEDGER, idempotent=True)
                    for _ in range(5)
                )
            )
            return running.handlers["infer_open"].__self__ is running.plugins[LEDGER]

    assert asyncio.run(run())
