"""The coordinator on a scheduler without workers."""

import asyncio
import contextlib

from distributed import Scheduler

from dask_infer.pipeline.scheduler.coordinator import GroupCoordinator
from dask_infer.pipeline.scheduler.group import Group
from dask_infer.spec import GroupSpec, ModelSpec
from dask_infer.spec.group_spec import COORDINATOR, Patience

PRELOAD = """
from dask_infer.pipeline.scheduler.coordinator import GroupCoordinator

def dask_setup(scheduler):
    scheduler.add_plugin(GroupCoordinator())
"""


@contextlib.asynccontextmanager
async def scheduler(**options):
    async with Scheduler(dashboard=False, port=0, **options) as scheduler:
        yield scheduler


def group_of(coordinator, name, **patience):
    spec = GroupSpec(ModelSpec(name, "callable", name), patience=Patience(**patience))
    group = coordinator.groups[spec.key] = Group(spec)
    return group


def test_a_task_that_feeds_several_groups_leaves_them_all():
    # The first one released changed the groups that were gone through.
    async def run():
        async with scheduler() as running:
            await running.register_scheduler_plugin(
                GroupCoordinator(), COORDINATOR, idempotent=True
            )
            coordinator = running.plugins[COORDINATOR]
            for name in "abc":
                group_of(coordinator, name, idle=0).feeders.add("task")
            kept = group_of(coordinator, "used")
            kept.feeders |= {"task", "other"}
            coordinator.transition("task", "processing", "memory")
            return kept, dict(coordinator.groups)

    kept, groups = asyncio.run(run())
    assert list(groups.values()) == [kept]
    assert kept.feeders == {"other"}


def test_the_ledger_can_be_preloaded_and_is_registered_once():
    async def run():
        async with scheduler(preload=PRELOAD) as running:
            coordinator = running.plugins[COORDINATOR]
            await asyncio.gather(
                *(
                    running.register_scheduler_plugin(
                        GroupCoordinator(), COORDINATOR, idempotent=True
                    )
                    for _ in range(3)
                )
            )
            assert running.plugins[COORDINATOR] is coordinator
            assert running.handlers["infer_open"].__self__ is coordinator
            return await running.handlers["infer_knows"](key="none")

    assert asyncio.run(run()) is False


def test_of_registrations_at_once_the_first_one_counts():
    async def run():
        async with scheduler() as running:
            await asyncio.gather(
                *(
                    running.register_scheduler_plugin(
                        GroupCoordinator(), COORDINATOR, idempotent=True
                    )
                    for _ in range(5)
                )
            )
            return (
                running.handlers["infer_open"].__self__ is running.plugins[COORDINATOR]
            )

    assert asyncio.run(run())
