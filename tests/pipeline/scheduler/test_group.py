"""What watchers of a group are informed of, and when."""

import asyncio
import pickle

import pytest

from dask_infer.pipeline.messages.group_state import GroupState
from dask_infer.pipeline.scheduler import group as module
from dask_infer.pipeline.scheduler.group import Group

from ..stub_scheduler import StubScheduler, on_loop, settle, spec_of


def serving(instances: int = 3) -> Group:
    """Return a group that serves, of which no watcher was informed yet."""
    group = Group(spec_of())
    for number in range(instances):
        instance = group.new_instance((0, 1), (1,))
        group.place(instance, 0, f"tcp://{number}").ready = True
    return group


@pytest.fixture
def rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watchers are informed of growth once in a very long time."""
    monkeypatch.setattr(module, "INTERVAL", (1000.0, 0.0))


def add(group: Group) -> None:
    group.place(group.new_instance((0, 1), (1,)), 0, "tcp://new").ready = True
    group.notify()


@on_loop
async def test_growth_is_reported_together(monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", (0.02, 0.0))
    group = serving()
    group.notify()
    version = group.version
    for _ in range(5):
        add(group)
    assert group.version == version
    await group.watch(version, 30)
    assert len(group.state().instances) == 8
    version = group.version
    await group.watch(version, 0.1)
    assert group.version == version


@on_loop
async def test_what_makes_the_known_state_false_is_reported_at_once(rarely):
    group = serving()
    versions = [group.version]

    def notify(status=None, **options):
        group.status = status or group.status
        group.notify(**options)
        versions.append(group.version)

    notify()  # it serves
    add(group)
    assert group.version == versions[-1]
    group.instances[0].placed.clear()
    notify(lost=True)
    assert GroupState.unpacked(group.message()).instances[0].ready is False
    group.instances.clear()
    notify()  # none serves any more
    notify("refused")
    notify("released")
    assert len(set(versions)) == len(versions)


@on_loop
async def test_the_interval_grows_with_the_users(monkeypatch):
    monkeypatch.setattr(module, "INTERVAL", (0.0, 1000.0))
    monkeypatch.setattr(module, "LOSS_INTERVAL", (0.0, 0.0))
    group = serving()
    group.notify()
    version = group.version
    watching = asyncio.create_task(group.watch(version, 30))
    await settle()
    add(group)  # it has no users
    await watching
    assert group.version > version
    group.feeders.add("a task")
    version = group.version
    add(group)
    assert group.version == version
    group.notify(lost=True)  # takes along what waits
    assert group.version == version + 1 and group._later is None


@on_loop
async def test_a_second_loss_waits_in_large_clusters_only(monkeypatch):
    monkeypatch.setattr(module, "LOSS_INTERVAL", (0.0, 1000.0))
    group = serving()
    group.feeders.add("a task")
    group.notify()
    version = group.version
    group.notify(lost=True)
    assert group.version > version
    version = group.version
    group.notify(lost=True)
    assert group.version == version
    group._later.cancel()


@on_loop
async def test_a_state_is_packed_once_for_a_version(rarely):
    group = serving()
    group.notify()
    message = group.message()
    add(group)
    assert group.message() is message
    group.notify(lost=True)
    assert len(GroupState.unpacked(group.message()).instances) == 4


@on_loop
async def test_a_state_that_is_known_is_not_sent_again():
    async with StubScheduler("a") as cluster:
        spec = spec_of()
        state = await cluster.open(spec)
        cluster.start_task("other")
        answer = await cluster.handlers["infer_open"](
            spec=pickle.dumps(spec), user="other", is_request=False,
            version=state.version,
        )  # fmt: skip
        assert answer == {"state": None, "feeders": 2}


def test_the_state_of_a_large_group_is_small():
    group = Group(spec_of())
    for number in range(1000):
        instance = group.new_instance((0, 1), (1,))
        address = f"tcp://10.0.{number // 250}.{number % 250}:{30000 + number}"
        group.place(instance, 0, address).ready = True
    assert len(group.message()) < 20_000
    assert GroupState.unpacked(group.message()) == group.state()
