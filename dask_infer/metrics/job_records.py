"""What each job was doing from its first partition to its last.

Stages serve several jobs, so what they did during a job is the growth of their sums
between its start and its end. A job that goes on after a pause begins a new record:
what stages did in the pause is not its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dask_infer.metrics.sums import Label, Sums, to_message

#: Jobs that are kept, the latest.
KEPT = 32
#: Seconds without a partition from which a job that goes on is another run.
PAUSE = 5.0


@dataclass(frozen=True)
class Look:
    """What was known at one moment: of a job, of stages, of the workers' hosts."""

    #: Seconds since the epoch.
    at: float
    #: Of the partitions of the job.
    sums: Sums = field(default_factory=Sums)
    #: Of the model's stages, by stage.
    stages: Mapping[int, Sums] = field(default_factory=dict)
    #: As `ClusterSums.host` has it.
    host: Mapping[str, float] = field(default_factory=dict)


@dataclass
class JobRecord:
    """One run of a job."""

    label: Label
    #: Seconds since the epoch when it began, as far as its sums tell.
    start: float
    #: The last look before it was seen to run.
    before: Look
    #: The look when it was seen last.
    now: Look

    @property
    def running(self) -> bool:
        """Whether partitions of it run now."""
        return bool(self.now.sums.levels.get("partitions"))

    def to_message(self) -> dict[str, Any]:
        """Return it as lists and dicts; stages with what they did during the job."""
        before, now, model = self.before, self.now, self.label.model
        during = {
            Label(model, stage): sums.since(before.stages.get(stage))
            for stage, sums in now.stages.items()
        }
        return {
            "model": model,
            "job": self.label.job,
            "start": self.start,
            "seen": before.at,
            "end": now.at,
            "running": self.running,
            "sums": to_message({self.label: now.sums.since(before.sums)}),
            "stages": to_message(during),
            "host": _host_during(before.host, now.host),
        }


class JobRecords:
    """Records of the latest jobs."""

    def __init__(self) -> None:
        self.records: OrderedDict[Label, JobRecord] = OrderedDict()
        self._seen: Mapping[Label, Sums] = {}
        #: When `update` was called last, with what of models and hosts.
        self._looked: tuple[float, Mapping[Label, Sums], Mapping[str, float]] | None
        self._looked = None

    def update(
        self,
        now: float,
        by_job: Mapping[Label, Sums],
        by_model: Mapping[Label, Sums],
        host: Mapping[str, float] | None = None,
    ) -> None:
        """Take note of the jobs that went on since the last call."""
        latest = (now, by_model, host or {})
        # A short job is over when it is first seen, and so is what its stages did.
        at, models, hosts = self._looked or latest
        if now - at > PAUSE:
            at, models, hosts = latest
        for label, sums in by_job.items():
            known = self.records.get(label)
            look = Look(now, sums, stages_of(label.model, by_model), host or {})
            if self._seen.get(label) == sums:
                if known is not None and now - known.now.at < PAUSE:
                    stages = _with_late(known.now.stages, look.stages)
                    known.now = replace(known.now, stages=stages)
                continue
            done = Sums() if known is None else known.now.sums
            # Reading is counted when a partition's read has ended: it is no pause.
            start = now - _age(sums.since(done))
            paused = known and not known.running and start - known.now.at > PAUSE
            if known is None or paused:
                before = Look(at, done, stages_of(label.model, models), hosts)
                known = self.records[label] = JobRecord(label, start, before, look)
            known.now = look
            self.records.move_to_end(label)
        self._seen, self._looked = by_job, latest
        while len(self.records) > KEPT:
            self.records.popitem(last=False)


def _host_during(
    before: Mapping[str, float], now: Mapping[str, float]
) -> dict[str, float]:
    """Return what was used of the cores; nothing where workers came or left."""
    if any(now.get(each) != before.get(each) for each in ("cores", "processes")):
        return {}
    return {
        name: value if name in ("cores", "processes") else value - before[name]
        for name, value in now.items()
    }


def _age(sums: Sums) -> float:
    """Return for how long a run has gone on: its numbers may arrive late.

    A worker that imports a library sends no heartbeat meanwhile.
    """
    threads = sums.levels.get("partitions") or sums.count("started") or 1
    return sum(sums.seconds.values()) / threads


def _with_late(
    known: Mapping[int, Sums], stages: Mapping[int, Sums]
) -> dict[int, Sums]:
    """Return the sums of a job's stages, with forwards of which word came late.

    Heartbeats of stages may arrive after the last one of the job's partitions.
    """
    late = {
        stage: sums
        for stage, sums in stages.items()
        if sums.count("forwards") > known.get(stage, Sums()).count("forwards")
    }
    return {**known, **late}


def stages_of(model: str, by_model: Mapping[Label, Sums]) -> dict[int, Sums]:
    """Return the sums of a model's stages."""
    return {
        label.stage: sums
        for label, sums in by_model.items()
        if label.model == model and label.stage is not None
    }
