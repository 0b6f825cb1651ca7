"""What the scheduler knows of its workers' counters, kept up to date.

It reads what heartbeats left with the scheduler; the page, Prometheus, and clients read
from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from dask_infer.metrics.cluster_sums import VERSION, ClusterSums, Message
from dask_infer.metrics.history import STEP, History
from dask_infer.metrics.job_records import JobRecords
from dask_infer.metrics.sums import Label

logger = logging.getLogger(__name__)


class ClusterCounters:
    """Counters of all workers of a scheduler, also of those that left.

    Parameters
    ----------
    workers
        The scheduler's states of workers by address.
    """

    def __init__(self, workers: Mapping[str, Any]) -> None:
        self.sums = ClusterSums()
        self.jobs = JobRecords()
        self.history = History()
        #: Of each worker, also when it has just left: its last heartbeat counts.
        self.states: dict[str, Any] = dict(workers)
        #: Metrics that were read last, by worker.
        self._read: dict[str, Any] = {}
        #: Versions of messages that were complained of.
        self._unknown: set[Any] = set()
        self._noted = 0.0

    def __repr__(self) -> str:
        return f"<ClusterCounters {self.sums}>"

    def update(self, *, note: bool = False) -> None:
        """Read all heartbeats that arrived since the last call.

        Lines and jobs get a point every `STEP` seconds; now where `note` says so.
        """
        for address, state in self.states.items():
            self._read_one(address, state)
        now = time.time()
        if note or (self.sums.workers and now - self._noted >= STEP):
            self._noted = now
            by_model = self.sums.by_model()
            self.history.update(now, by_model)
            by_job, host = self.sums.by_job(), self.sums.host()
            self.jobs.update(now, by_job, by_model, host)

    def remove(self, address: str) -> None:
        """Keep the numbers of a worker that left, to its last heartbeat."""
        state = self.states.pop(address, None)
        if state is not None:
            self._read_one(address, state)
        self._read.pop(address, None)
        self.sums.remove(address)

    def _read_one(self, address: str, state: Any) -> None:
        metrics = state.metrics
        if self._read.get(address) is metrics:
            return
        self._read[address] = metrics
        message = metrics.get("infer")
        if message is None:  # nothing was predicted there yet, or by an older version
            return
        try:
            self.sums.update(address, Message.read(message))
        except (KeyError, TypeError, ValueError):
            version = message.get("version") if isinstance(message, dict) else None
            if version not in self._unknown:
                self._unknown.add(version)
                logger.warning(
                    "worker %s sends counters of version %s, this scheduler reads %s: "
                    "they are missing on its dashboard; use one version of dask_infer",
                    *(address, version, VERSION),
                )


def replica_label(replica: Mapping[str, Any]) -> Label:
    """Return what the rows of a resident replica are counted under."""
    stage = replica["stage"]
    return Label(replica["label"], 0 if stage is None and replica["serving"] else stage)
