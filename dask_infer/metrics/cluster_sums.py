"""The counters of all workers of a cluster, as they arrive, also of those that left.

What a worker sends is cumulative, so a message that is lost costs nothing. When a
worker leaves, its last numbers stay in the sums.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dask_infer.metrics.sums import Label, Sums, fold, from_message, total
from dask_infer.metrics.totals import EARLIER, MODELS

#: Version of the message; what comes in another one is passed over.
VERSION = 1
#: Seconds that a rate looks back, that are kept of each worker, and between two of
#: those.
RATE, RECENT, STEP = 5.0, 30.0, 1.0
#: Jobs with sums of their own, the latest.
JOBS = 64


@dataclass
class Message:
    """What a worker sent with one heartbeat."""

    #: Its clock, in seconds.
    at: float
    sums: dict[Label, Sums]
    #: Its resident replicas, as `replicas()` lists them.
    replicas: list[dict[str, Any]]
    #: Its process: seconds of CPU, of all processes of the host, and the cores there.
    host: dict[str, float]

    def __post_init__(self) -> None:
        jobs = self.sums.items()
        self.by_model = total({label._replace(job=""): sums} for label, sums in jobs)

    @staticmethod
    def read(message: Mapping[str, Any]) -> Message:
        """Return a worker's message; `ValueError` for one of another version."""
        if message["version"] != VERSION:
            raise ValueError(message["version"])
        sums = from_message(message["sums"])
        return Message(message["at"], sums, message["replicas"], message["host"])


class WorkerSums:
    """The latest message of one worker, and some before it."""

    def __init__(self, message: Message) -> None:
        self.latest = message
        #: Sums at moments of the last `RECENT` seconds, oldest first.
        self._before = deque([(message.at, message.by_model)])

    def update(self, message: Message) -> None:
        """Take a newer message."""
        known = self.latest.by_model
        for label, sums in message.by_model.items():
            if known.get(label) == sums:  # models that rest take no memory
                message.by_model[label] = known[label]
        self.latest = message
        if message.at - self._before[-1][0] >= STEP:
            self._before.append((message.at, message.by_model))
        while len(self._before) > 1 and message.at - self._before[1][0] >= RECENT:
            self._before.popleft()

    def recent(self, seconds: float) -> dict[Label, Sums]:
        """Return what was added in about the last `seconds`."""
        _, before = self.before(seconds)
        return {
            label: sums.since(before.get(label))
            for label, sums in self.latest.by_model.items()
        }

    def before(self, seconds: float) -> tuple[float, dict[Label, Sums]]:
        """Return the sums of about so many seconds ago, and how many it were."""
        now = self.latest.at
        old = (each for each in reversed(self._before) if now - each[0] >= seconds)
        at, by_model = next(old, self._before[0])
        return now - at, by_model


class ClusterSums:
    """Sums over all workers, those that left included."""

    def __init__(self) -> None:
        self.workers: dict[str, WorkerSums] = {}
        #: By model and stage, of workers that left.
        self.gone: OrderedDict[Label, Sums] = OrderedDict()
        #: By job, of workers that left or do not report it by itself any more.
        self._jobs: OrderedDict[Label, Sums] = OrderedDict()

    def __repr__(self) -> str:
        return f"<ClusterSums {len(self.workers)} workers, {len(self._jobs)} jobs>"

    def update(self, worker: str, message: Message) -> None:
        """Take what a worker sent."""
        if worker not in self.workers:
            self.workers[worker] = WorkerSums(message)
            return
        known = self.workers[worker]
        before = known.latest.sums.items()
        self._remember({k: v for k, v in before if k not in message.sums})
        known.update(message)

    def remove(self, worker: str) -> None:
        """Keep the last numbers of a worker that left."""
        left = self.workers.pop(worker, None)
        if left is None:
            return
        self._remember(left.latest.sums)
        for label, sums in left.latest.by_model.items():
            fold(self.gone, label, sums)
        while len(self.gone) > MODELS:
            label, older = self.gone.popitem(last=False)
            fold(self.gone, Label(EARLIER, label.stage), older)

    def by_model(self) -> dict[Label, Sums]:
        """Return the sums of each model and stage."""
        return total([self.gone, *(w.latest.by_model for w in self.workers.values())])

    def by_job(self) -> dict[Label, Sums]:
        """Return the sums of each job that has its own."""
        result = total([self._jobs, *(w.latest.sums for w in self.workers.values())])
        return {label: sums for label, sums in result.items() if label.job}

    def recent(self, seconds: float) -> dict[Label, Sums]:
        """Return what was added by model and stage in about the last `seconds`."""
        return total([w.recent(seconds) for w in self.workers.values()])

    def host(self) -> dict[str, float]:
        """Return seconds of CPU of all processes and of their hosts, and the cores."""
        cpu: dict[str, float] = {}
        hosts: dict[str, dict[str, float]] = {}
        for address, worker in self.workers.items():
            host = worker.latest.host
            if not host:
                continue
            # Workers of one process, which have such addresses, count it once.
            local = address.startswith("inproc")
            process = address.rpartition("/")[0] if local else address
            cpu[process] = max(cpu.get(process, 0.0), host["cpu"])
            name = process if local else address.rpartition(":")[0]
            if host["busy"] >= hosts.get(name, host)["busy"]:
                hosts[name] = host
        return {
            "processes": len(cpu),
            "cpu": sum(cpu.values()),
            "busy": sum(host["busy"] for host in hosts.values()),
            "cores": sum(host["cores"] for host in hosts.values()),
        }

    def rates(self, name: str) -> dict[tuple[str, Label], float]:
        """Return how fast a counter grows, by worker, model and stage."""
        result = {}
        for address, worker in self.workers.items():
            seconds, _ = worker.before(RATE)
            for label, added in worker.recent(RATE).items():
                result[address, label] = added.count(name) / seconds if seconds else 0.0
        return result

    def _remember(self, sums: Mapping[Label, Sums]) -> None:
        for label, each in sums.items():
            if label.job:
                fold(self._jobs, label, each)
        while len(self._jobs) > JOBS:
            self._jobs.popitem(last=False)
