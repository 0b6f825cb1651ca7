"""A line in the log at the end of each job of this process, without a cluster.

Dask's own schedulers say when a computation begins and ends (dask 2026.8.0). The
scheduler of a cluster logs the jobs of its workers.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from dask.callbacks import Callback

from dask_infer.metrics.job_records import JobRecord, Look
from dask_infer.metrics.sums import Label, Sums
from dask_infer.watching.counts import local_jobs

#: The same as of a cluster's jobs. By its name: the dashboard is imported where a job
#: has ended, as a scheduler on which it is missing must import all else.
logger = logging.getLogger("dask_infer.dashboard.job_log")


class LocalLog(Callback):
    """Logs what was predicted between the start and the end of a computation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: When each computation that runs began, and the sums of all jobs then.
        self._before: dict[int, tuple[float, dict[Label, Sums]]] = {}

    def _start(self, graph: Any) -> None:
        self._before[id(graph)] = time.time(), local_jobs()

    def _finish(self, graph: Any, state: Any, failed: bool) -> None:
        from dask_infer.dashboard.job_log import log_job

        start, before = self._before.pop(id(graph))
        for label, sums in local_jobs().items():
            done = Look(start, before.get(label, Sums()))
            record = JobRecord(label, start, done, Look(time.time(), sums))
            added = sums.since(done.sums).count("rows")
            # One that still runs belongs to another computation.
            if added and not record.running:
                log_job(record)


_local_log = LocalLog()


def log_local_jobs(prediction: Any) -> None:
    """Log from now on, if the log is read; called before anything is computed."""
    if logger.isEnabledFor(logging.INFO):
        _local_log.register()
