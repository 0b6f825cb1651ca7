"""The facts of one job, each with where it comes from: measured, projected, assumed."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from distributed.comm.addressing import get_address_host
from distributed.system import MEMORY_LIMIT

from dask_infer import config
from dask_infer.device.resolve_device import resolve_device
from dask_infer.errors import ModelLoadError
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.load_model import resident_bytes
from dask_infer.model.runtime.stage_model import read_chain
from dask_infer.pipeline.scheduler.worker_states import Resources, models_bytes
from dask_infer.pipeline.worker.measure import chain_facts, planned_kind, uncut_chain
from dask_infer.plan.facts import ChainFacts, WorkerFacts
from dask_infer.plan.layouts.job_facts import Fact, JobFacts, Source
from dask_infer.plan.layouts.remote_layouts import SHARDS
from dask_infer.plan.layouts.shards import EXCHANGE
from dask_infer.plan.microbatch_size import fixed_and_per_row
from dask_infer.plan.units import count, in_bytes, in_seconds
from dask_infer.replica.measured import (
    chain_key,
    load_key,
    rate_key,
    rows_key,
    sharded,
)
from dask_infer.replica.models_limit import models_limit
from dask_infer.replica.worker_place import current_place, partitions_at_once
from dask_infer.spec import AutoSpec

#: Floating operations a second of one core and of an accelerator, where nothing was
#: measured; their proportion is how many times as fast an accelerator is.
FLOPS = {"cpu": 1e11, "cuda": 2e13, "mps": 4e12}
#: Tokens of a text.
TOKENS = 128
#: Seconds of a row of a model of unknown size, and of reading and encoding one.
ROW, PREPARE = 1e-4, 2e-5
#: Bytes a second of weights from a disk, and of all hosts from one store.
DISK, STORE = 1e9, 1.25e9
#: Bytes a second of a mapped file that come into a process at most: the load of it does
#: not wait for them, the first forward does (benchmarks/planner).
MAPPED = 2e9
#: Rows of a partition where metadata does not say.
MANY = 100_000
#: Share of an accelerator's memory that models may take (`Cuda.memory_limit`).
ON_DEVICE = 0.75
#: Most shards whose times are looked up.
MOST_SHARDS = max(SHARDS)
#: The fact that says whether jobs before measured a forward.
FORWARD = "forward of a row"


def keys_of(auto: AutoSpec) -> list[str]:
    """Return the keys of what earlier jobs may have measured."""
    group = auto.group
    found = []
    found += [rows_key(auto.rate_key, kind) for kind in _kinds_of_rows(*FLOPS)]
    for kind in FLOPS:
        found.append(rate_key(kind))
        found.append(load_key(group.model.key, group.dtype, kind))
        if group.chain is not None:
            found.append(chain_key(group.chain.key, kind))
    return found


class Gatherer:
    """Gathers the facts of one job.

    `workers` is the scheduler's answer about each worker, by address, and empty without
    a cluster; `known` is what `recall_each` returned.
    """

    def __init__(
        self, auto: AutoSpec, workers: Mapping[str, Any], known: Mapping[str, Any]
    ) -> None:
        self.auto, self.group, self.known = auto, auto.group, known
        self.info = {
            address: each
            for address, each in workers.items()
            if each.get("status", "running") == "running"
        }
        self.shown: list[Fact] = []

    def gather(self, chain: ChainFacts | None = None, kind: str = "cpu") -> JobFacts:
        """Return the facts; those to be shown are in `shown`.

        `chain` has the blocks as they were measured just now, on that kind of device;
        without it earlier jobs count.
        """
        #: The kind of device on which the blocks were timed.
        self._timed, self.shown = kind, []
        nbytes = self._bytes()
        workers, kind, resources = self._workers()
        chain = self._blocks(kind) if chain is None else chain
        rows = self._rows()
        row, call = self._row_seconds(kind, chain, nbytes)
        hosts = {worker.host for worker in workers}
        facts = JobFacts(
            nbytes=nbytes,
            workers=tuple(workers),
            rows=rows,
            partitions=max(1, self.auto.partitions),
            row_seconds=row,
            prepare_seconds=self._prepare_seconds(kind),
            call_seconds=call,
            blocks=chain.blocks,
            uncut=self.auto.uncut,
            sharded_seconds={
                shards: state["forward"] * self._speed(kind)
                for shards in range(2, MOST_SHARDS + 1)
                if (state := self._rows_state(sharded(kind, shards))) is not None
            },
            load_rate=self._load_rate(kind),
            store_rate=STORE if len(hosts) > 1 else inf,
            cores=self.known.get("cores"),
            core_share=self._core_share(kind),
            resources=resources,
            pinned=bool(self.group.resources),
        )
        if len(hosts) > 1:
            self._show("all hosts together load", f"{in_bytes(STORE)}/s", "assumed")
        return facts

    @property
    def is_measured(self) -> bool:
        """Whether jobs before this one measured its forward."""
        return any(f.name == FORWARD and f.source == "measured" for f in self.shown)

    # --- each fact -----------------------------------------------------------------

    def _show(self, name: str, value: str, source: Source) -> None:
        self.shown.append(Fact(name, value, source))

    def _bytes(self) -> int:
        group = self.group
        if group.chain is not None:
            nbytes = int(read_chain(group.chain).nbytes)
        else:
            try:
                nbytes = resident_bytes(group.model, group.dtype)
            except (OSError, ModelLoadError):
                nbytes = group.model.nbytes
        source: Source = "projected" if nbytes else "assumed"
        self._show("model", in_bytes(nbytes) if nbytes else "small", source)
        return nbytes

    def _rows(self) -> int:
        parts = count(self.auto.partitions, "partition")
        if self.auto.rows is not None:
            rows = f"up to {self.auto.rows:,} in {parts}"
            self._show("rows", rows, "measured")
            return self.auto.rows
        self._show("rows", f"{MANY:,} in each of {parts}", "assumed")
        return MANY * self.auto.partitions

    def _blocks(self, kind: str) -> ChainFacts:
        if self.group.chain is None:
            if not self.auto.divides:
                return ChainFacts((), None)
            exchange = f"{in_seconds(EXCHANGE)}, the size of activations left out"
            self._show("an exchange between shards", exchange, "assumed")
            return uncut_chain(self.group)
        times = None
        for each in (kind, *FLOPS):
            times = self.known.get(chain_key(self.group.chain.key, each))
            if times is not None:
                self._timed = each
                break
        return chain_facts(read_chain(self.group.chain), times)

    def _speed(self, kind: str) -> float:
        """Return how many times as fast as a CPU a kind of device is."""
        measured = self._measured_speed(kind)
        return FLOPS[kind] / FLOPS["cpu"] if measured is None else measured

    def _measured_speed(self, kind: str) -> float | None:
        """Return it where jobs ran the model on both."""
        states = [self._rows_state(each) for each in ("cpu", kind)]
        rows = [state["forward"] for state in states if state is not None]
        return float(rows[0] / rows[1]) if len(rows) == 2 and all(rows) else None

    def _rows_state(self, kind: str) -> Mapping[str, float] | None:
        """Return what jobs noted of the model's rows on a kind of device."""
        return self.known.get(rows_key(self.auto.rate_key, kind))

    def _row_seconds(
        self, kind: str, chain: ChainFacts, nbytes: int
    ) -> tuple[float, float]:
        """Return CPU seconds of one row, and those of a forward whatever its rows."""
        name = FORWARD
        for each in (kind, *FLOPS):
            if (state := self._rows_state(each)) is not None:
                self._show(name, in_seconds(state["forward"]), "measured")
                return state["forward"] * self._speed(each), 0.0
        if chain.fewer is not None:
            whole = sum(block.seconds for block in chain.blocks)
            fixed, row = fixed_and_per_row(sum(chain.fewer), whole)
            self._show(name, f"{in_seconds(row)} (synthetic rows)", "measured")
            speed = self._speed(self._timed)
            return row * speed, fixed * speed
        if not nbytes:
            self._show(name, in_seconds(ROW), "assumed")
            return ROW, 0.0
        numbers = sum(block.parameters for block in chain.blocks) or nbytes / 4
        seconds = 2 * numbers * (TOKENS if self.auto.text else 1) / FLOPS["cpu"]
        shown = in_seconds(seconds / self._speed(kind))
        self._show(name, f"{shown} (by the model's size)", "projected")
        return seconds, 0.0

    def _prepare_seconds(self, kind: str) -> float:
        states = map(self._rows_state, _kinds_of_rows(kind, *FLOPS))
        state = next(filter(None, states), None)
        seconds = PREPARE if state is None else float(state["prepare"])
        source: Source = "assumed" if state is None else "measured"
        self._show("reading and encoding a row", in_seconds(seconds), source)
        return seconds

    def _core_share(self, kind: str) -> float:
        state = self._rows_state(kind)
        return 1.0 if state is None else min(1.0, float(state["cores"]))

    def _load_rate(self, kind: str) -> float:
        group = self.group
        for key in (load_key(group.model.key, group.dtype, kind), rate_key(kind)):
            state = self.known.get(key)
            if state is not None and state["bytes"] and state["seconds"]:
                rate = min(MAPPED, state["bytes"] / state["seconds"])
                self._show("a worker loads", f"{in_bytes(rate)}/s", "measured")
                return float(rate)
        self._show("a worker loads", f"{in_bytes(DISK)}/s", "assumed")
        return DISK

    def _workers(self) -> tuple[list[WorkerFacts], str, Resources]:
        """Return the workers, the kind of device, and the resources of a group."""
        group = self.group
        if not self.info:
            local, kind = self._this_process()
            self._show_memory([local])
            return [local], kind, group.resources
        kinds = {address: self._kind(each) for address, each in self.info.items()}
        fast = [address for address, kind in kinds.items() if kind != "cpu"]
        resources = group.resources
        if fast and len(fast) < len(self.info) and not resources:
            resources = self._in_common(fast)
        workers = [self.worker(address, resources) for address in self.info]
        self._show_memory(workers)
        kind = kinds[fast[0]] if fast else "cpu"
        if fast and len(fast) < len(self.info):
            times = f"{self._speed(kind):.0f} times a worker without one"
            what = f"speed of {count(len(fast), 'accelerator')}"
            is_known = self._measured_speed(kind) is not None
            self._show(what, times, "measured" if is_known else "assumed")
        return workers, kind, resources

    def _kind(self, info: Mapping[str, Any]) -> str:
        has_one = bool(info.get("gpu")) or "GPU" in info.get("resources", {})
        return planned_kind(self.group, has_one)

    def _in_common(self, fast: list[str]) -> Resources:
        """Return a resource that all of these workers have, and no other."""
        for name in ("GPU", *self.info[fast[0]]["resources"]):
            having = [a for a, i in self.info.items() if i["resources"].get(name)]
            if set(having) == set(fast):
                return ((name, 1.0),)
        return ()

    def worker(self, address: str, resources: Resources) -> WorkerFacts:
        """Return what is known of a worker, which may hold what has such resources."""
        info = self.info[address]
        kind = self._kind(info)
        accelerated = kind != "cpu"
        free = info.get("free", info["resources"])
        holds = [int(free.get(n, 0) // v) for n, v in resources]
        return WorkerFacts(
            address,
            _room(info, accelerated),
            speed=self._speed(kind),
            host=get_address_host(address),
            threads=int(info["nthreads"]),
            holds=min(holds, default=int(not info.get("holds_group"))),
            one_at_a_time=accelerated,
        )

    def _this_process(self) -> tuple[WorkerFacts, str]:
        """Return this process as the one worker, and the kind of its device."""
        asked = self.group.device
        on_host = asked == "auto" and format_of(self.group.model).takes_host()
        device = resolve_device("cpu" if on_host else asked)
        limit, kind = models_limit(device, current_place()), device.torch_device.type
        local = WorkerFacts(
            "this process",
            MEMORY_LIMIT if limit is None else limit,
            speed=self._speed(kind),
            threads=partitions_at_once(),
            one_at_a_time=device.one_at_a_time,
        )
        return local, kind

    def _show_memory(self, workers: list[WorkerFacts]) -> None:
        rooms = sorted({worker.room for worker in workers})
        shown = " to ".join(in_bytes(each) for each in {*rooms[:1], *rooms[-1:]})
        what = f"memory for models of {count(len(workers), 'worker')}"
        self._show(what, shown, "assumed" if rooms[-1] == inf else "measured")


def _kinds_of_rows(*kinds: str) -> list[str]:
    """Return what times of rows are noted for: forwards whole, then in shards."""
    return [sharded(k, shards) for shards in range(1, MOST_SHARDS + 1) for k in kinds]


def _room(info: Mapping[str, Any], accelerated: bool) -> int | None:
    """Return the bytes that models may take on a worker; None for no limit."""
    limits = [config.get_bytes("replica.memory-limit")]
    if accelerated and info.get("gpu"):
        limits.append(int(ON_DEVICE * info["gpu"]["memory-total"]))
    elif not accelerated and info.get("memory_limit"):
        limits.append(models_bytes(info["memory_limit"]))
    return min((limit for limit in limits if limit is not None), default=None)
