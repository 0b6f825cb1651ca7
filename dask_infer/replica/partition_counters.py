"""Counters of a worker: of each partition that runs there, and its heartbeat's message.

What Dask sends with a heartbeat under ``worker.metrics`` reaches the scheduler without
any code there, so a scheduler that cannot import this package harms nobody.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
from dask.system import CPU_COUNT

from dask_infer._dask import count_in_fine_metrics, task_start
from dask_infer.metrics.cluster_sums import VERSION
from dask_infer.metrics.recorder import add
from dask_infer.metrics.sums import Label, to_message
from dask_infer.metrics.totals import recording, totals
from dask_infer.replica.residents import rows_here
from dask_infer.replica.worker_place import current_worker

#: Columns of `replicas` that travel with each heartbeat.
REPORTED = ("label", "model", "device", "stage", "serving", "bytes", "rows", "idle")

#: Activities that Dask's own metrics show as the task's.
_OUTSIDE = ("read", "other")

_ended = threading.local()


@contextlib.contextmanager
def recording_partition(label: Label, rows: int) -> Iterator[None]:
    """Record the calling task, which reads, predicts and writes one partition.

    Time since the task began, or since an earlier prediction in it ended, was spent
    reading.
    """
    worker = current_worker()
    address = "local" if worker is None else worker.address
    with recording(address, label) as recorder:
        began = None if worker is None else task_start()
        if began is not None:
            began = max(began, getattr(_ended, "at", began))
            recorder.seconds["read"] = max(0.0, time.time() - began)
        recorder.levels["partitions"] = 1
        recorder.add("started")
        recorder.add("rows_in", rows)
        try:
            yield
            add("partitions")
        finally:
            _ended.at = time.time()
            if worker is not None:
                seconds = recorder.sums().seconds
                inside = {a: s for a, s in seconds.items() if a not in _OUTSIDE}
                count_in_fine_metrics(inside)


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
