"""The coordinator: its users, its watchers, and how it gets onto a scheduler."""

import asyncio
import contextlib
import pickle
import time

import pytest
from distributed import Scheduler

from dask_infer.pipeline.messages.group_state import GroupState
from dask_infer.pipeline.scheduler import coordinator
from dask_infer.pipeline.scheduler.coordinator import GroupCoordinator
from dask_infer.spec.group_spec import COORDINATOR

from ..stub_scheduler import StubScheduler, on_loop, settle, spec_of, until

PRELOAD = """
from dask_infer.pipeline.scheduler.coordinator import GroupCoordinator

def dask_setup(scheduler):
    scheduler.add_plugin(GroupCoordinator())
"""


@contextlib.asynccontextmanager
async def real_scheduler(**options):
    async with Scheduler(dashboard=False, port=0, **options) as running:
        yield running


async def register(running, times):
    """Register the coordinator so many times at once, as group requests do."""
    await asyncio.gather(
        *(
            running.register_scheduler_plugin(
                GroupCoordinator(), COORDINATOR, idempotent=True
            )
            for _ in range(times)
        )
    )


@on_loop
async def test_the_coordinator_can_be_preloaded_and_is_registered_once():
    async with real_scheduler(preload=PRELOAD) as running:
        coordinator = running.plugins[COORDINATOR]
        await register(running, 3)
        assert running.plugins[COORDINATOR] is coordinator
        assert running.handlers["infer_open"].__self__ is coordinator
        assert await running.handlers["infer_knows"](key="none") is False


@on_loop
async def test_of_registrations_at_once_the_first_one_counts():
    async with real_scheduler() as running:
        await register(running, 5)
        owner = running.handlers["infer_open"].__self__
        assert owner is running.plugins[COORDINATOR]


@on_loop
async def test_users_of_one_model_share_a_group():
    async with StubScheduler("a") as cluster:
        spec = spec_of()
        await cluster.open(spec, user="request", is_request=True)
        state = await cluster.open(spec, user="feeder")
        assert len(cluster.submitted) == 1
        assert state.status == "forming"
        (group,) = cluster.table
        assert (group.requests, group.feeders) == ({"request"}, {"feeder"})


@on_loop
async def test_a_cancelled_task_opens_no_group():
    # The thread of a cancelled feeder asked, and its user was never removed.
    async with StubScheduler("a") as cluster:
        answer = await cluster.handlers["infer_open"](
            spec=pickle.dumps(spec_of()), user="gone", is_request=False
        )
        assert GroupState.unpacked(answer["state"]).status == "refused"
        assert not list(cluster.table)


@on_loop
async def test_the_layers_of_a_model_are_measured_once():
    async with StubScheduler("a", "b") as cluster:
        spec = spec_of(blocks=2, stages=2, idle=0)
        assert not await cluster.handlers["infer_knows"](key=spec.key)
        await cluster.open(spec, blocks=2)
        cluster.end_task("feeder")
        assert await cluster.handlers["infer_knows"](key=spec.key)
        state = await cluster.open(spec)
        assert len(state.instances[0].route) == 2


@pytest.mark.parametrize(
    ("is_request", "finish", "released"),
    [
        (False, "memory", True),
        (False, "erred", True),
        (False, "released", True),
        (False, "processing", False),
        (True, "memory", False),
        (True, "erred", True),
        (True, "forgotten", True),
    ],
)
def test_table_of_users_that_leave(is_request, finish, released):
    @on_loop
    async def run():
        async with StubScheduler("a") as cluster:
            await cluster.open(spec_of(idle=0), is_request=is_request)
            cluster.end_task("feeder", finish)
            await settle()
            assert bool(cluster.running_stages()) is not released

    run()


@on_loop
async def test_a_task_that_feeds_several_groups_leaves_them_all():
    # The first one released changed the groups that were gone through.
    async with StubScheduler("a", "b", "c", "d") as cluster:
        for name in "abc":
            await cluster.open(spec_of(name, idle=0, replicas=1), user="task")
        await cluster.open(spec_of("used", replicas=1), user="task")
        await cluster.open(spec_of("used", replicas=1), user="other")
        cluster.end_task("task")
        (kept,) = cluster.table
        assert kept.feeders == {"other"}
        assert len(cluster.running_stages()) == 1


@on_loop
async def test_an_idle_group_is_released_after_its_timeout():
    async with StubScheduler("a") as cluster:
        spec = spec_of(idle=0.05)
        await cluster.open(spec)
        cluster.end_task("feeder")
        assert cluster.running_stages()
        await cluster.open(spec, user="other")
        await asyncio.sleep(0.08)
        assert cluster.running_stages()  # it has a user again
        cluster.end_task("other")
        await until(lambda: not cluster.running_stages())
        assert (await cluster.watch(spec)).status == "released"


@on_loop
async def test_an_unloaded_group_is_released_once_it_has_no_user():
    async with StubScheduler("a", "b") as cluster:
        used, other = spec_of("used", replicas=1), spec_of("other", replicas=1)
        await cluster.open(used)
        await cluster.open(other, user="other")
        cluster.coordinator.unload(used.model.key)
        assert len(cluster.running_stages()) == 2
        cluster.end_task("feeder")
        assert [group.spec for group in cluster.table] == [other]


@on_loop
async def test_a_long_poll_is_answered_by_the_next_change():
    async with StubScheduler("a") as cluster:
        spec = spec_of()
        state = await cluster.open(spec)
        polls = asyncio.gather(*(cluster.watch(spec, state.version) for _ in range(3)))
        await settle()
        assert not polls.done()
        await cluster.serve()
        states = await polls
        assert {each.status for each in states} == {"ready"}
        assert states[0].facts.floating == "float32"
        assert states[0].version > state.version


@on_loop
async def test_a_long_poll_ends_without_a_change(monkeypatch):
    monkeypatch.setattr(coordinator, "LONG_POLL_SECONDS", 0.01)
    async with StubScheduler("a") as cluster:
        spec = spec_of()
        state = await cluster.open(spec)
        assert await cluster.watch(spec, state.version) is None


@on_loop
async def test_a_silent_worker_is_replaced():
    async with StubScheduler("a", "b") as cluster:
        spec = spec_of(replicas=1)
        await cluster.open(spec)
        (address,) = cluster.running_stages().values()
        cluster.workers[address].last_seen = time.time() - 100
        await until(lambda: list(cluster.running_stages().values()) != [address])
        (instance,) = (await cluster.watch(spec)).instances
        assert instance.epoch == 1


@on_loop
async def test_a_restart_releases_everything():
    async with StubScheduler("a", "b") as cluster:
        await cluster.open(spec_of())
        cluster.coordinator.restart(cluster)
        await settle()
        assert not cluster.running_stages() and not list(cluster.table)


@on_loop
async def test_a_group_that_was_refused_is_formed_again():
    async with StubScheduler() as cluster:
        spec = spec_of()
        assert (await cluster.open(spec)).status == "refused"
        cluster.add_worker("a")
        assert (await cluster.open(spec)).status == "forming"
        assert len(cluster.running_stages()) == 1


@on_loop
async def test_a_stage_that_is_cancelled_before_it_is_submitted_never_is():
    async with StubScheduler("a", "b") as cluster:
        spec = spec_of()
        async with cluster.coordinator.tasks._connecting:
            await cluster.open(spec)
            cluster.coordinator.unload(None)
            cluster.end_task("feeder")
        await settle()
        assert not cluster.submitted
