"""Counters of a worker: of each partition that runs there, and its heartbeat's message.

What Dask sends with a heartbeat under ``worker.metrics`` reaches the scheduler without
any code there, so it does no harm that a scheduler cannot import this package.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import psutil
from dask.system import CPU_COUNT

from dask_infer._dask import count_in_fine_metrics, task_start
from dask_infer.metrics.cluster_sums import VERSION
from dask_infer.metrics.sums import Label, to_message
from dask_infer.metrics.totals import recording, totals
from dask_infer.replica.residents import rows_here
from dask_infer.replica.worker_place import current_worker

#: Columns of `replicas` that travel with each heartbeat.
REPORTED = (
    *("label", "model", "device", "stage", "shard"),
    *("serving", "bytes", "rows", "idle"),
)

#: Seconds from which a part of a task is shown in Dask's fine metrics: each takes some
#: microseconds, which the parts of a no-op partition are not worth (benchmarks/seeing).
FINE = 1e-3
#: Activities that Dask's own metrics show as the task's.
_OUTSIDE = ("read", "other")


#: Its `at` is when a thread last ended a partition, in seconds since the epoch.
_ended = threading.local()


class recording_partition(recording):
    """Record the calling task, which reads, predicts and writes one partition.

    Time since the task began, or since an earlier prediction in it ended, was spent
    reading.
    """

    __slots__ = ("_on_worker",)

    def __init__(self, label: Label, rows: int) -> None:
        worker = current_worker()
        super().__init__("local" if worker is None else worker.address, label)
        self._on_worker = worker is not None
        self.counts = {"started": 1, "rows_in": rows}
        self.levels = {"partitions": 1}
        if worker is not None and (began := task_start()) is not None:
            read = time.time() - max(began, getattr(_ended, "at", 0.0))
            self.seconds["read"] = max(0.0, read)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.counts["partitions"] = 1
        super().__exit__(kind, error, trace)
        _ended.at = time.time()
        if not self._on_worker:
            return
        parts = {
            activity: amount
            for activity, amount in self.seconds.items()
            if amount >= FINE and activity not in _OUTSIDE
        }
        if parts:  # what Dask cannot show must not fail a task
            with contextlib.suppress(Exception):
                count_in_fine_metrics(parts)


def count_idle(label: Label, seconds: float) -> None:
    """Count seconds for which the calling task had nothing for a model to do.

    They were spent on other models of the task, not on reading.
    """
    worker = current_worker()
    address = "local" if worker is None else worker.address
    with recording(address, label) as recorder:
        recorder.seconds["idle"] = seconds
    _ended.at = time.time()


def heartbeat_message(worker: Any) -> dict[str, Any]:
    """Return all counters of a worker: cumulative, so that one may be lost."""
    busy = psutil.cpu_times()
    replicas = rows_here(worker)
    return {
        "version": VERSION,
        "at": time.monotonic(),
        "sums": to_message(totals.snapshot(worker.address)),
        "replicas": [{name: row[name] for name in REPORTED} for row in replicas],
        "host": {
            "cpu": time.process_time(),
            "busy": sum(busy) - busy.idle - getattr(busy, "iowait", 0.0),
            "cores": CPU_COUNT,
        },
    }
