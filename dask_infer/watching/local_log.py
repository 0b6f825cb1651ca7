"""A line in the log at the end of each job of this process, without a cluster.

Dask's own schedulers say when a computation begins and ends (dask 2026.8.0). The
scheduler of a cluster logs the jobs of its workers.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from dask.callbacks import Callback

from dask_infer.dashboard.job_log import log_job, logger
from dask_infer.metrics.sums import Label, Sums, to_message
from dask_infer.watching.counts import local_jobs


class LocalLog:
    """Logs what was predicted between the start and the end of a computation."""

    def __init__(self) -> None:
        self.callback = Callback(start=self._begin, finish=self._end)
        #: When each computation that runs began, and the sums of all jobs then.
        self._before: dict[int, tuple[float, dict[Label, Sums]]] = {}

    def _begin(self, graph: Any) -> None:
        self._before[id(graph)] = time.time(), local_jobs()

    def _end(self, graph: Any, state: Any, failed: bool) -> None:
        start, before = self._before.pop(id(graph))
        for label, now in local_jobs().items():
            sums = now.since(before.get(label))
            # One that still runs belongs to another computation.
            if not sums.count("rows") or sums.levels.get("partitions"):
                continue
            log_job(
                {
                    **{"model": label.model, "job": label.job},
                    **{"start": start, "end": time.time(), "running": False},
                    **{"sums": to_message({label: sums}), "stages": []},
                }
            )


_local_log = LocalLog()


def log_local_jobs(prediction: Any) -> None:
    """Log from now on, if the log is read; called before anything is computed."""
    if logger.isEnabledFor(logging.INFO):
        _local_log.callback.register()
