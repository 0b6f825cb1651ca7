"""The placement of one group: all stages or none, replaced after losses, refused."""

import asyncio
import pickle

import pytest

from dask_infer.errors import ModelLoadError

from ..stub_scheduler import GIB, StubScheduler, on_loop, settle, spec_of, until

GPU = (("GPU", 1.0),)
#: Instances that are asked for, so that no more are added.
ONE = {"replicas": 1}


@on_loop
async def test_stages_are_placed_on_distinct_workers():
    async with StubScheduler("a", "b", "c") as cluster:
        state = await cluster.open(spec_of(blocks=4, stages=3, **ONE), blocks=4)
        assert state.status == "forming"
        (instance,) = state.instances
        assert sorted(instance.route) == ["a", "b", "c"]
        assert sorted(cluster.running_stages().values()) == ["a", "b", "c"]
        stages = [stage for stage, _ in cluster.submitted.values()]
        blocks = [(stage.layers.start, stage.layers.stop) for stage in stages]
        assert blocks == [(0, 2), (2, 3), (3, 4)]


@on_loop
async def test_all_stages_are_placed_or_none():
    async with StubScheduler("a", "b", GPU=1) as cluster:
        cluster.workers["b"].used_resources["GPU"] = 1
        spec = spec_of(blocks=2, stages=2, resources=GPU, grace=60, **ONE)
        state = await cluster.open(spec, blocks=2)
        assert state.status == "forming" and not cluster.submitted
        (waits,) = [event for event in cluster.events if event.startswith("waits")]
        assert "2 workers with GPU=1 are needed and 1 is free" in waits
        assert "b has its GPU=1 in use by other tasks" in waits
        cluster.workers["b"].used_resources["GPU"] = 0
        await until(cluster.running_stages)
        assert sorted(cluster.running_stages().values()) == ["a", "b"]


@on_loop
async def test_the_largest_stage_takes_the_smallest_worker_that_is_large_enough():
    async with StubScheduler() as cluster:
        for address, gib in [("huge", 64), ("large", 8), ("small", 2)]:
            cluster.add_worker(address, gib * GIB)
        await cluster.open(spec_of(memory=3 * GIB, **ONE))
        assert list(cluster.running_stages().values()) == ["large"]


@on_loop
async def test_what_is_not_placed_within_the_grace_is_refused():
    async with StubScheduler("a") as cluster:
        state = await cluster.open(spec_of(resources=GPU))
        assert state.status == "refused" and not cluster.submitted
        with pytest.raises(Exception, match=r"has no place for its replica after 0 s"):
            raise pickle.loads(state.error)


@on_loop
async def test_a_chain_that_fits_no_workers_is_refused_with_the_plan_s_reason():
    async with StubScheduler("a", memory=GIB) as cluster:
        state = await cluster.open(spec_of(blocks=3, stages="auto"), blocks=3)
        assert state.status == "refused"
        with pytest.raises(Exception, match=r'block "b0" needs 1.0 GiB.*infer.placem'):
            raise pickle.loads(state.error)


@on_loop
async def test_a_group_takes_what_is_free_and_grows():
    async with StubScheduler("a", "b") as cluster:
        state = await cluster.open(spec_of())
        assert len(state.instances) == 2
        await cluster.serve()
        cluster.add_worker("c")
        await until(lambda: len(cluster.running_stages()) == 3)
        assert sorted(cluster.running_stages().values()) == ["a", "b", "c"]


@on_loop
async def test_a_lost_stage_is_placed_again_under_a_higher_epoch():
    async with StubScheduler("a", "b", "c") as cluster:
        spec = spec_of(blocks=2, stages=2, **ONE)
        state = await cluster.open(spec, blocks=2)
        await cluster.serve()
        first = cluster.running_stages()
        lost = state.instances[0].route[0]
        cluster.remove_worker(lost)
        await settle()
        state = await cluster.watch(spec)
        (instance,) = state.instances
        assert (instance.epoch, instance.ready, state.status) == (1, False, "forming")
        assert sorted(instance.route) == sorted({"a", "b", "c"} - {lost})
        (key,) = cluster.running_stages().keys() - first.keys()
        await cluster.serve(key)
        assert (await cluster.watch(spec)).status == "ready"


@on_loop
async def test_reports_of_an_older_epoch_are_ignored():
    async with StubScheduler("a", "b") as cluster:
        spec = spec_of(**ONE)
        state = await cluster.open(spec)
        (old,) = cluster.submitted
        cluster.remove_worker(state.instances[0].route[0])
        await settle()
        await cluster.serve(old)
        assert (await cluster.watch(spec)).status == "forming"


@on_loop
async def test_a_worker_that_is_lost_while_another_stage_waits():
    async with StubScheduler("a", "b") as cluster:
        spec = spec_of(blocks=2, stages=2, grace=60, **ONE)
        await cluster.open(spec, blocks=2)
        cluster.remove_worker("a")
        await settle()
        assert list(cluster.running_stages().values()) == ["b"]
        cluster.remove_worker("b")
        await settle()
        assert cluster.running_stages() == {}
        cluster.add_worker("c")
        cluster.add_worker("d")
        await until(lambda: len(cluster.running_stages()) == 2)
        assert sorted(cluster.running_stages().values()) == ["c", "d"]
        (instance,) = (await cluster.watch(spec)).instances
        assert instance.epoch == 2


@on_loop
async def test_a_spare_instance_without_a_worker_is_dropped():
    async with StubScheduler("a", "b") as cluster:
        spec = spec_of()
        await cluster.open(spec)
        await cluster.serve()
        cluster.remove_worker("b")
        await settle()
        state = await cluster.watch(spec)
        assert [each.route for each in state.instances] == [("a",)]
        assert state.status == "ready"


@on_loop
async def test_a_stage_that_cannot_be_loaded_refuses_the_group():
    async with StubScheduler("a") as cluster:
        spec = spec_of(**ONE)
        await cluster.open(spec)
        ((_, future),) = cluster.submitted.values()
        future.set_exception(OSError("no driver"))
        await settle()
        state = await cluster.watch(spec)
        assert state.status == "refused"
        with pytest.raises(Exception, match=r"stage 0 .* ended on worker a: OSError"):
            raise pickle.loads(state.error)


@on_loop
async def test_a_spare_instance_that_cannot_be_loaded_is_dropped():
    async with StubScheduler("a", "b") as cluster:
        spec = spec_of()
        await cluster.open(spec)
        (key, (_, future)) = list(cluster.submitted.items())[-1]
        worker = cluster.running_stages()[key]
        future.set_exception(ModelLoadError("no driver; install it"))
        await settle()
        (instance,) = (await cluster.watch(spec)).instances
        assert worker not in instance.route
        await cluster.serve()
        await asyncio.sleep(0.02)  # it does not grow onto that worker again
        assert len((await cluster.watch(spec)).instances) == 1


@on_loop
async def test_an_idle_group_makes_room():
    async with StubScheduler("a", "b") as cluster:
        idle = spec_of("idle", **ONE)
        await cluster.open(idle)
        cluster.end_task("feeder")
        spec = spec_of(blocks=2, stages=2, grace=60, **ONE)
        await cluster.open(spec, user="other", blocks=2)
        await until(lambda: len(cluster.running_stages()) == 2)
        assert list(cluster.table.groups) == [spec.key]
        assert sorted(cluster.running_stages().values()) == ["a", "b"]


@on_loop
async def test_a_spare_instance_makes_room_for_a_newcomer():
    async with StubScheduler("a", "b") as cluster:
        await cluster.open(spec_of("used"))
        await cluster.serve()
        await cluster.open(spec_of("newcomer", grace=60, **ONE), user="other")
        new = next(group for group in cluster.table if "newcomer" in group.spec.key)
        await until(lambda: new.placed)
        await settle()
        assert len(cluster.running_stages()) == 2
        assert [len(group.instances) for group in cluster.table] == [1, 1]


@on_loop
async def test_what_can_never_be_placed_takes_no_room():
    async with StubScheduler("a", "b") as cluster:
        await cluster.open(spec_of("idle"))
        cluster.end_task("feeder")
        state = await cluster.open(spec_of(resources=GPU), user="other")
        assert state.status == "refused"
        assert len(cluster.running_stages()) == 2


# --- several groups of one job ------------------------------------------------------


@on_loop
async def test_the_groups_of_a_job_are_placed_all_or_none():
    async with StubScheduler("a") as cluster:
        pair = [spec_of("x", grace=60), spec_of("y", grace=60)]
        states = await cluster.reserve(pair, "request")
        assert [state.status for state in states] == ["forming", "forming"]
        assert not cluster.submitted
        cluster.add_worker("b")
        await until(lambda: len(cluster.running_stages()) == 2)
        assert sorted(cluster.running_stages().values()) == ["a", "b"]


@on_loop
async def test_two_jobs_do_not_hold_what_the_other_needs():
    async with StubScheduler("a", "b", GPU=1) as cluster:
        options = {"resources": GPU, "grace": 60, **ONE}
        one = [spec_of(name, **options) for name in ("x1", "y1")]
        two = [spec_of(name, **options) for name in ("x2", "y2")]
        await cluster.reserve(one, "first")
        await cluster.reserve(two, "second")
        held = {stage.group.model.name for stage, _ in cluster.submitted.values()}
        assert held == {"x1", "y1"}
        await cluster.serve()
        cluster.end_task("first", "forgotten")  # the first job is done
        await until(lambda: len(cluster.submitted) == 4)
        states = [await cluster.watch(spec) for spec in two]
        assert all(state.instances for state in states)


@on_loop
async def test_a_job_of_which_one_group_has_no_place_is_refused():
    async with StubScheduler("a", "b") as cluster:
        pair = [spec_of("x"), spec_of("y", resources=GPU)]
        states = await cluster.reserve(pair, "request")
        assert [state.status for state in states] == ["refused", "refused"]
        assert not cluster.submitted
        with pytest.raises(Exception, match=r'model "y" has no place .* with GPU=1'):
            raise pickle.loads(states[0].error)


@on_loop
async def test_of_groups_that_are_planned_together_one_may_be_released():
    # It was planned on, and placed once there were workers: no one released it.
    async with StubScheduler("a", memory=GIB // 2) as cluster:
        options = {"blocks": 2, "stages": 2, "grace": 60, "idle": 0, **ONE}
        pair = [spec_of("x", **options), spec_of("y", **options)]
        await cluster.reserve(pair, "request", blocks=2)
        cluster.end_task("request", "forgotten")
        assert not list(cluster.table)
        for address in "bcde":
            cluster.add_worker(address)
        await asyncio.sleep(0.02)
        await settle()
        assert not cluster.running_stages()


@on_loop
async def test_a_group_released_while_it_is_planned_does_not_refuse_those_beside_it():
    async with StubScheduler("a", memory=GIB // 2) as cluster:
        options = {"blocks": 2, "stages": 2, "grace": 60, "idle": 0, **ONE}
        pair = [spec_of("x", **options), spec_of("y", **options)]
        await cluster.reserve(pair, "request", blocks=2)
        await cluster.open(pair[1], user="other", is_request=True)
        cluster.end_task("request", "forgotten")
        (group,) = cluster.table
        assert group.spec.key == pair[1].key
        await asyncio.sleep(0.02)  # the next look at the workers
        for address in "bc":
            cluster.add_worker(address)
        await until(lambda: group.ended or cluster.running_stages())
        assert sorted(cluster.running_stages().values()) == ["b", "c"]


@on_loop
async def test_a_group_that_serves_already_is_shared():
    async with StubScheduler("a", "b") as cluster:
        await cluster.open(spec_of("x", **ONE))
        await cluster.serve()
        await cluster.reserve([spec_of("x", **ONE), spec_of("y", **ONE)], "request")
        assert len(cluster.running_stages()) == 2


@on_loop
async def test_what_workers_of_another_version_count_says_no_speed():
    async with StubScheduler("a", "b") as cluster:
        await cluster.reserve([spec_of("x"), spec_of("y")], "request")
        await cluster.serve()
        for worker in cluster.workers.values():
            worker.metrics["infer"] = {"version": 0, "sums": {"rows": 100}}
        assert not any(map(cluster.coordinator._may_grow, cluster.table))


@on_loop
async def test_free_workers_go_to_the_slowest_group_of_a_job():
    async with StubScheduler("a", "b", "c", "d") as cluster:
        pair = [spec_of("x"), spec_of("y")]
        await cluster.reserve(pair, "request")
        await cluster.serve()
        # Neither has run a row: no one knows which is slow.
        assert len(cluster.running_stages()) == 2
        cluster.measured("x", rows=100, seconds=1)
        assert not any(map(cluster.coordinator._may_grow, cluster.table))
        cluster.measured("y", rows=100, seconds=3)
        await until(lambda: len(cluster.running_stages()) == 4)
        names = [stage.group.model.name for stage, _ in cluster.submitted.values()]
        assert sorted(names) == ["x", "y", "y", "y"]


@on_loop
async def test_a_group_that_lost_its_worker_takes_the_spare_of_one_beside_it():
    async with StubScheduler("a", "b", "c") as cluster:
        pair = [spec_of("x", grace=60), spec_of("y", grace=60)]
        await cluster.reserve(pair, "request")
        await cluster.serve()
        cluster.measured("x", rows=100, seconds=1)
        cluster.measured("y", rows=100, seconds=3)
        await until(lambda: len(cluster.running_stages()) == 3)
        await cluster.serve()
        x, y = (cluster.table.groups[spec.key] for spec in pair)
        assert [len(x.instances), len(y.instances)] == [1, 2]
        cluster.remove_worker(x.instances[0].placed[0].address)
        await until(lambda: x.instances[0].placed)
        await settle()
        assert [len(x.instances), len(y.instances)] == [1, 1]
        assert len(cluster.running_stages()) == 2
