"""What the coordinator of a large cluster takes of its scheduler, watched by all."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import pickle
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from distributed import Scheduler, rpc

from benchmarks import measure
from dask_infer.pipeline.messages.group_state import GroupState, ModelFacts
from dask_infer.pipeline.scheduler.coordinator import GroupCoordinator
from dask_infer.pipeline.scheduler.group import Group, Instance
from dask_infer.pipeline.scheduler.placer import Placer
from dask_infer.pipeline.scheduler.stage_tasks import StageTasks
from dask_infer.spec import GroupSpec, ModelSpec
from dask_infer.spec.group_spec import COORDINATOR
from dask_infer.spec.layout import Layout

HEADER = (
    "instances x stages | phase | answers/s | MB/s | scheduler, % of a core | "
    "informed after s, median | last"
)
KEY = "group"


def _address(number: int) -> str:
    return f"tcp://10.{number // 62500}.{number // 250 % 250}.{number % 250}:34567"


class SimulatedGroup:
    """A group on the scheduler whose workers are addresses; its changes are real."""

    def __init__(
        self, scheduler: Scheduler, instances: int, stages: int, watchers: int
    ) -> None:
        coordinator = scheduler.plugins[COORDINATOR]
        assert isinstance(coordinator, GroupCoordinator)
        self.coordinator, self.table = coordinator, coordinator.table
        model = ModelSpec(key="model", name="model", kind="callable", nbytes=1)
        spec = GroupSpec(model, Layout(replicas=instances, stages=stages))
        self.group = self.table.groups[KEY] = Group(spec)
        self.group.feeders.update(range(watchers))
        self.number = 0
        for _ in range(instances):
            instance = self.group.new_instance(range(stages + 1), [1] * stages)
            for index in range(stages):
                self.place(instance, index)
        self.table.notify(self.group, "placed")

    def place(self, instance: Instance, index: int) -> None:
        """Place a stage on the next worker."""
        self.group.place(instance, index, _address(self.number))
        self.number += 1

    async def serve(self, instance: Instance, index: int) -> None:
        """Report that a stage serves, as its worker does."""
        facts = pickle.dumps(ModelFacts())
        epoch = instance.epoch
        await self.coordinator._ready(instance.name, index, epoch, facts)

    async def form(self, seconds: float) -> None:
        """Have all stages serve, one after another, in so many seconds."""
        stages = [(i, index) for i in self.group.instances for index in i.placed]
        began = time.monotonic()
        for number, (instance, index) in enumerate(stages):
            due = began + seconds * number / len(stages)
            await asyncio.sleep(max(0, due - time.monotonic()))
            await self.serve(instance, index)

    async def lose(self, times: int, pause: float) -> list[float]:
        """Lose a stage, which serves again half a second later; return when."""
        lost = []
        for number in range(times):
            instance = self.group.instances[number]
            instance.epoch += 1
            del instance.placed[0]
            lost.append(time.time())
            self.table.notify(self.group, "lost", lost=True)
            await asyncio.sleep(0.5)
            self.place(instance, 0)
            await self.serve(instance, 0)
            await asyncio.sleep(pause - 0.5)
        return lost


async def _phase(
    dask_scheduler: Any, phase: str, options: dict[str, Any]
) -> tuple[float, float, list[float]]:
    """Run a phase on the scheduler; return its seconds, its CPU, and the losses."""
    losses: list[float] = []
    if phase == "start":
        await dask_scheduler.register_scheduler_plugin(
            GroupCoordinator(), COORDINATOR, idempotent=True
        )
        dask_scheduler.simulated = SimulatedGroup(dask_scheduler, **options)
    began, cpu = time.monotonic(), time.process_time()
    simulated = dask_scheduler.simulated
    if phase == "form":
        await simulated.form(**options)
    elif phase == "lose":
        losses = await simulated.lose(**options)
    elif phase == "rest":
        await asyncio.sleep(**options)
    elif phase == "stop":
        simulated.table.release(simulated.group, "done")
    return time.monotonic() - began, time.process_time() - cpu, losses


@dataclass
class Watchers:
    """Workers with feeders, as far as the scheduler knows them: all of them watch."""

    address: str
    answers: int = 0
    nbytes: int = 0
    #: When each epoch of the sum of all instances' was first seen by each watcher.
    seen: dict[int, list[float]] = field(default_factory=dict)

    async def watch(self) -> None:
        """Ask again and again, on a connection of its own."""
        version, epochs = -1, 0
        async with rpc(self.address) as scheduler:
            while True:
                answer = await scheduler.infer_watch(key=KEY, version=version)
                self.answers += 1
                if answer["state"] is None:
                    continue
                self.nbytes += len(answer["state"])
                state = _opened(answer["state"])
                version = state.version
                total = sum(instance.epoch for instance in state.instances)
                for epoch in range(epochs + 1, total + 1):
                    self.seen.setdefault(epoch, []).append(time.time())
                epochs = total


#: States by their messages: watchers are on machines of their own, not on this core.
_states: dict[bytes, GroupState] = {}


def _opened(message: bytes) -> GroupState:
    if message not in _states:
        _states[message] = GroupState.unpacked(message)
    return _states[message]


async def phases(
    client: Any, watchers: int, instances: int, stages: int, options: argparse.Namespace
) -> list[list[Any]]:
    """Lines of the table for a group of this shape."""

    async def run(phase: str, **arguments: Any) -> list[Any]:
        answers, nbytes = counted.answers, counted.nbytes
        seconds, cpu, losses = await client.run_on_scheduler(
            _phase, phase=phase, options=arguments
        )
        after = ["", ""]
        if losses:
            await asyncio.sleep(1)
            delays = sorted(
                seen - lost
                for lost, times in zip(losses, counted.seen.values(), strict=True)
                for seen in times
            )
            assert len(delays) == len(losses) * watchers
            after = [f"{measure.median(delays):.2f}", f"{delays[-1]:.2f}"]
        return [
            f"{instances} x {stages}", phase,
            f"{(counted.answers - answers) / seconds:,.0f}",
            f"{(counted.nbytes - nbytes) / seconds / 1e6:.2f}",
            f"{100 * cpu / seconds:.1f}", *after,
        ]  # fmt: skip

    counted = Watchers(client.scheduler.address)
    await run("start", instances=instances, stages=stages, watchers=watchers)
    tasks = []
    for _ in range(watchers):
        tasks.append(asyncio.create_task(counted.watch()))
        await asyncio.sleep(0.002)
    await asyncio.sleep(5)
    lines = [await run("form", seconds=options.seconds)]
    await asyncio.sleep(5)
    lines.append(await run("rest", delay=options.seconds))
    lines.append(await run("lose", times=options.losses, pause=options.pause))
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    with contextlib.suppress(OSError):
        await run("stop")
    return lines


def looks(workers: int, rounds: int = 20) -> float:
    """Seconds of CPU that a look for room to grow takes, where there is none."""
    states = {
        _address(n): SimpleNamespace(
            address=_address(n), host="host", resources={}, used_resources={},
            memory_limit=2**33, last_seen=math.inf, processing=set(), nthreads=1,
        )
        for n in range(workers)
    }  # fmt: skip
    scheduler: Any = SimpleNamespace(
        address="tcp://scheduler", workers=states, running=list(states.values()),
        tasks={}, plugins={}, log_event=lambda *_: None,
    )  # fmt: skip
    from dask_infer.pipeline.scheduler.group_table import GroupTable

    table = GroupTable(scheduler, StageTasks(scheduler))
    group = Group(GroupSpec(ModelSpec("model", "model", "callable", 1)))
    for number in range(workers):
        group.place(group.new_instance((0, 1), (1,)), 0, _address(number))
    table.groups[KEY] = group
    placer = Placer(table, group)
    began = time.process_time()
    for _ in range(rounds):
        placer.grow()
    return (time.process_time() - began) / rounds


async def _main(options: argparse.Namespace) -> None:
    from distributed import Client
    from distributed.deploy.subprocess import SubprocessCluster

    async with (
        SubprocessCluster(
            asynchronous=True, n_workers=1, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await client.run_on_scheduler(_import_self)
        lines = []
        for shape in options.shapes:
            instances, stages = map(int, shape.split("x"))
            lines += await phases(client, options.watchers, instances, stages, options)
    print(measure.machine(("dask", "distributed")))
    print(f"\n{options.watchers} watchers\n")
    print(measure.table(HEADER.split(" | "), lines))
    print(f"\nA look for room to grow, 1,000 workers: {1e3 * looks(1000):.1f} ms")


def _import_self() -> None:
    """Import what a scheduler of this benchmark runs."""
    import benchmarks.watchers.main  # noqa: F401


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--shapes", nargs="+", default=["125x8", "1000x1"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--losses", type=int, default=4)
    parser.add_argument("--pause", type=float, default=5)
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
