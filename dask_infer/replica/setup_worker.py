"""A worker made ready for replicas, by the first task that runs on it.

No plugin has to be registered: workers that join later are served like the others,
whatever client, or none, is still there.
"""

from __future__ import annotations

import threading
import weakref

from distributed import Worker

from dask_infer import config
from dask_infer._dask import sample_no_faster
from dask_infer.dashboard.watch import register_watch
from dask_infer.metrics.totals import totals
from dask_infer.replica.delivery import fetch_through
from dask_infer.replica.partition_counters import heartbeat_message

_prepared: weakref.WeakSet[Worker] = weakref.WeakSet()
_preparing = threading.Lock()


def setup_worker(worker: Worker) -> None:
    """Make a worker ready; doing it again changes nothing."""
    with _preparing:
        if worker in _prepared:
            return
        fetch_through(worker)
        worker.metrics["infer"] = heartbeat_message
        worker.loop.add_callback(register_watch, worker)
        weakref.finalize(worker, totals.forget, worker.address)
        # Dask samples the stack of every task 100 times a second, with the interpreter
        # held: 6 % of a worker's CPU in benchmarks/overhead (distributed 2026.8.0).
        interval = config.get_seconds("replica.profile-interval")
        if interval is not None:
            sample_no_faster(worker, interval)
        # Last: a thread that finds it here may rely on all of the above.
        _prepared.add(worker)
