"""What each job was doing from its first partition to its last.

Stages serve several jobs, so what they did during a job is the growth of their sums
between its start and its end. A job that goes on after a pause begins a new record:
what stages did in the pause is not its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dask_infer.metrics.sums import Label, Sums, to_message

#: Jobs that are kept, the latest.
KEPT = 32
#: Seconds without a partition from which a job that goes on is another run.
PAUSE = 5.0


@dataclass
class JobRecord:
    """One run of a job."""

    model: str
    job: str
    #: Seconds since the epoch when it began, as far as its sums tell, of the last look
    #: before it was seen to run, and when it was seen last.
    start: float
    seen: float
    end: float
    #: Sums of its partitions, before this run and now.
    sums_before: Sums
    sums: Sums
    #: Sums of the model's stages at that look and at the end, by stage.
    stages_before: dict[int, Sums]
    stages: dict[int, Sums]
    #: Of the workers and their hosts, as `ClusterSums.host` has them.
    host_before: Mapping[str, float] = field(default_factory=dict)
    host: Mapping[str, float] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Whether partitions of it run now."""
        return bool(self.sums.levels.get("partitions"))

    def to_message(self) -> dict[str, Any]:
        """Return it as lists and dicts; stages with what they did during the job."""
        during = {
            Label(self.model, stage): sums.since(self.stages_before.get(stage))
            for stage, sums in self.stages.items()
        }
        sums = self.sums.since(self.sums_before)
        return {
            "model": self.model,
            "job": self.job,
            "start": self.start,
            "seen": self.seen,
            "end": self.end,
            "running": self.running,
            "sums": to_message({Label(self.model, None, self.job): sums}),
            "stages": to_message(during),
            "host": self._host_during(),
        }

    def _host_during(self) -> dict[str, float]:
        """Return what was used of the cores; nothing where workers came or left."""
        before, now = self.host_before, self.host
        if any(now.get(each) != before.get(each) for each in ("cores", "processes")):
            return {}
        return {
            name: value if name in ("cores", "processes") else value - before[name]
            for name, value in now.items()
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
        host = host or {}
        # A short job is over when it is first seen, and so is what its stages did.
        looked = self._looked or (now, by_model, host)
        if now - looked[0] > PAUSE:
            looked = (now, by_model, host)
        for label, sums in by_job.items():
            known = self.records.get(label)
            stages = _stages(label.model, by_model)
            if self._seen.get(label) == sums:
                if known is not None and now - known.end < PAUSE:
                    known.stages = _with_late(known.stages, stages)
                continue
            before = Sums() if known is None else known.sums
            # Reading is counted when a partition's read has ended: it is no pause.
            start = now - _age(sums.since(before))
            paused = known and not known.running and start - known.end > PAUSE
            if known is None or paused:
                known = self.records[label] = JobRecord(
                    label.model,
                    label.job,
                    start=start,
                    seen=looked[0],
                    end=now,
                    sums_before=before,
                    sums=sums,
                    stages_before=_stages(label.model, looked[1]),
                    stages=stages,
                    host_before=looked[2],
                    host=host,
                )
            known.end, known.sums, known.stages, known.host = now, sums, stages, host
            self.records.move_to_end(label)
        self._seen, self._looked = by_job, (now, by_model, host)
        while len(self.records) > KEPT:
            self.records.popitem(last=False)


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


def _stages(model: str, by_model: Mapping[Label, Sums]) -> dict[int, Sums]:
    return {
        label.stage: sums
        for label, sums in by_model.items()
        if label.model == model and label.stage is not None
    }
