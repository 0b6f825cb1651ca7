"""A scheduler without processes: workers as facts, tasks as futures, for unit tests."""

from __future__ import annotations

import asyncio
import functools
import pickle
import time
from types import SimpleNamespace
from typing import Any

from dask_infer.metrics.cluster_sums import VERSION
from dask_infer.metrics.sums import Label, Sums, to_message
from dask_infer.pipeline.messages.group_state import GroupState, ModelFacts
from dask_infer.pipeline.messages.stage_spec import StageSpec
from dask_infer.pipeline.scheduler.coordinator import GroupCoordinator
from dask_infer.plan.facts import BlockFacts, ChainFacts
from dask_infer.spec import Blob, GroupSpec, ModelSpec
from dask_infer.spec.group_spec import GroupTimeouts
from dask_infer.spec.layout import Layout

GIB = 2**30


def on_loop(test: Any) -> Any:
    """Run an asynchronous test on a loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return run


def spec_of(
    name: str = "model", blocks: int = 0, memory: int = GIB, **options: Any
) -> GroupSpec:
    """Return a model of so many blocks and bytes; whole where there are none."""
    layout = {k: options.pop(k) for k in ("stages", "replicas") if k in options}
    grace, idle = options.pop("grace", 0), options.pop("idle", 60)
    return GroupSpec(
        ModelSpec(key=name, name=name, kind="callable", nbytes=memory),
        Layout(**layout),
        chain=Blob(name, name) if blocks else None,
        timeouts=GroupTimeouts(grace=grace, idle=idle, stall=60),
        **options,
    )


def chain_of(blocks: int, memory: int = GIB) -> ChainFacts:
    facts = [BlockFacts(f"b{i}", memory, 1.0) for i in range(blocks)]
    return ChainFacts(tuple(facts), None, "Split by hand.")


class StubFuture(asyncio.Future):
    """What a Dask client returns for a stage's task."""

    @property
    def status(self) -> str:
        return "cancelled" if self.cancelled() else "pending"


class StubScheduler:
    """Workers with addresses, resources and memory; records stage tasks by key."""

    def __init__(self, *workers: str, memory: int = 64 * GIB, **resources: int) -> None:
        self.address = "tcp://scheduler"
        self.handlers: dict[str, Any] = {}
        self.tasks: dict[str, Any] = {}
        self.workers: dict[str, Any] = {}
        self.events: list[str] = []
        #: Stage tasks that were submitted, by key: the stage and its future.
        self.submitted: dict[str, tuple[StageSpec, StubFuture]] = {}
        for address in workers:
            self.add_worker(address, memory, **resources)

    async def __aenter__(self) -> StubScheduler:
        self.coordinator = GroupCoordinator()
        await self.coordinator.start(self)
        self.table = self.coordinator.table
        client = SimpleNamespace(status="running", submit=self._submit, close=_nothing)
        self.coordinator.tasks._client = client
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.coordinator.close()
        await settle()

    @property
    def running(self) -> list[Any]:
        return list(self.workers.values())

    def log_event(self, topic: str, event: dict[str, str]) -> None:
        self.events.append(event["event"])

    def add_worker(self, address: str, memory: int = 64 * GIB, **held: int) -> None:
        self.workers[address] = SimpleNamespace(
            address=address, host="host", resources=held, used_resources={},
            memory_limit=memory, last_seen=time.time(), processing=set(), nthreads=1,
            metrics={},
        )  # fmt: skip

    def remove_worker(self, address: str) -> None:
        del self.workers[address]
        self.coordinator.remove_worker(self, address)

    def start_task(self, key: str) -> str:
        self.tasks[key] = SimpleNamespace(state="processing", processing_on=None)
        return key

    def end_task(self, key: str, finish: str = "memory") -> None:
        self.coordinator.transition(key, "processing", finish)

    async def open(
        self, spec: GroupSpec, user: str = "feeder", blocks: int = 0, **options: Any
    ) -> GroupState:
        """Ask for a group as a worker does, and let what follows happen."""
        self.start_task(user)
        call = {"is_request": False, **options}
        if blocks:
            self.table.chains[spec.key] = chain_of(blocks)
        handler = self.handlers["infer_open"]
        await handler(spec=pickle.dumps(spec), user=user, **call)
        await settle()
        return await self.watch(spec)

    async def reserve(
        self, specs: list[GroupSpec], user: str, blocks: int = 0
    ) -> list[GroupState]:
        """Ask for several groups as one request, and let what follows happen."""
        self.start_task(user)
        chains = {spec.key: chain_of(blocks) for spec in specs if spec.chain}
        reserve = self.handlers["infer_reserve"]
        wanted = {"specs": pickle.dumps(specs), "chains": pickle.dumps(chains)}
        await reserve(**wanted, user=user)
        await settle()
        return [await self.watch(spec) for spec in specs]

    def measured(self, model: str, rows: int, seconds: float) -> None:
        """Have the workers of a model's stages say what they did, by heartbeat."""
        for stage, _ in self.submitted.values():
            worker = self.tasks[stage.key].processing_on
            if stage.group.model.name == model:
                label = Label(stage.group.model.label, stage.layers.stage)
                sums = Sums({"rows": rows}, {"forward": seconds})
                sent = {"version": VERSION, "at": 0.0, "replicas": [], "host": {}}
                worker.metrics["infer"] = {**sent, "sums": to_message({label: sums})}

    async def watch(self, spec: GroupSpec, version: int = -1) -> GroupState | None:
        """Return a newer state of a group, or None where there was none."""
        answer = await self.handlers["infer_watch"](key=spec.key, version=version)
        packed = answer["state"]
        return None if packed is None else GroupState.unpacked(packed)

    async def serve(self, *keys: str) -> None:
        """Have stage tasks report that they serve; all of them without `keys`."""
        for key in keys or list(self.submitted):
            stage, _ = self.submitted[key]
            await self.handlers["infer_ready"](
                instance=stage.instance, slot=stage.slot, epoch=stage.epoch,
                facts=pickle.dumps(ModelFacts(floating="float32")),
            )  # fmt: skip

    def running_stages(self) -> dict[str, str]:
        """Return the workers of stage tasks that were not cancelled, by key."""
        return {
            key: self.tasks[key].processing_on.address
            for key, (_, future) in self.submitted.items()
            if not future.done()
        }

    def _submit(self, function: Any, stage: bytes, *, key: str, **options: Any) -> Any:
        assert key not in self.submitted and not options["allow_other_workers"]
        (address,) = options["workers"]
        worker, future = self.workers[address], StubFuture()
        self.submitted[key] = (pickle.loads(stage), future)
        self.tasks[key] = SimpleNamespace(state="processing", processing_on=worker)
        for name, amount in (options["resources"] or {}).items():
            worker.used_resources[name] = worker.used_resources.get(name, 0) + amount
            future.add_done_callback(
                lambda _, w=worker, n=name, a=amount: w.used_resources.update(
                    {n: w.used_resources[n] - a}
                )
            )
        return future


async def settle() -> None:
    """Let everything happen that does not wait for time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Any) -> None:
    """Wait for what takes a look of the coordinator, or a timeout of a group."""
    while not condition():
        await asyncio.sleep(0.002)


async def _nothing() -> None: ...
