"""A scheduler plugin that keeps the counters of all workers, also of those that left.

Registered by the first task of each worker, or as a preload. All of it runs on the
scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin

from dask_infer.dashboard.cluster_counters import ClusterCounters
from dask_infer.dashboard.job_log import JobLog
from dask_infer.metrics.sums import to_message

logger = logging.getLogger(__name__)

#: Name of the plugin on its scheduler.
NAME = "dask-infer-watch"
#: Seconds between two looks at what arrived: a small cluster's workers report as often.
POLL_SECONDS = 0.5


class Watch(SchedulerPlugin):
    """Counters of a cluster."""

    name = NAME
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Begin; awaits nothing, so that no second one is registered.

        Not synchronous: a scheduler awaits what its preloaded plugins start
        (distributed 2026.8.0).
        """
        self.scheduler = scheduler
        self.counters = ClusterCounters(scheduler.workers)
        self.job_log = JobLog()
        for operation in ("sums", "jobs"):
            handler = getattr(self, f"_{operation}")
            scheduler.handlers[f"infer_{operation}"] = handler
        self._looking = asyncio.ensure_future(self._look())
        self._add("the page Infer", _add_pages)
        self._add("the dask_infer_* series for Prometheus", _add_series)

    async def close(self) -> None:
        """End with the scheduler; its last jobs have no other time to be logged."""
        self._looking.cancel()
        self._update(last=True)

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Know a worker by its state, which stays readable when it leaves."""
        self.counters.states[worker] = scheduler.workers[worker]

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Keep its numbers."""
        self.counters.remove(worker)

    # --- what is asked of it -----------------------------------------------------

    async def _sums(self) -> list[Any]:
        """Return the sums of all jobs."""
        self.counters.update()
        return to_message(self.counters.sums.by_job())

    async def _jobs(self) -> list[dict[str, Any]]:
        """Return the records of the latest jobs, oldest first."""
        self.counters.update(note=True)
        records = self.counters.jobs.records.values()
        return [record.to_message() for record in records]

    # --- the passing of time -----------------------------------------------------

    def _update(self, *, last: bool = False) -> None:
        self.counters.update(note=last)
        self.job_log.update(time.time(), self.counters.jobs.records, last=last)

    async def _look(self) -> None:
        while True:
            try:
                self._update()
            except Exception:
                logger.exception("the counters of the workers could not be read")
                await asyncio.sleep(60)
            await asyncio.sleep(POLL_SECONDS)

    def _add(self, what: str, add: Any) -> None:
        """Add something that others can do without."""
        try:
            add(self.scheduler, self.counters)
        except ImportError as error:
            logger.info("%s needs a package that is missing: %s", what, error)
        except Exception:
            logger.warning("%s could not be added", what, exc_info=True)


def _add_pages(scheduler: Scheduler, counters: ClusterCounters) -> None:
    from dask_infer.dashboard.page import add_pages

    add_pages(scheduler, counters)


def _add_series(scheduler: Scheduler, counters: ClusterCounters) -> None:
    from dask_infer.dashboard.prometheus import add_series

    add_series(counters)


async def register_watch(owner: Any, level: int = logging.WARNING) -> bool:
    """Have the scheduler of a worker or a client watch; where it cannot, log why."""
    try:
        await owner.scheduler.register_scheduler_plugin(
            plugin=pickle.dumps(Watch()), name=NAME, idempotent=True
        )
    except Exception as error:
        logger.log(
            level,
            "the scheduler shows no page Infer and keeps no counters: %s: %s. "
            "This version of dask_infer must be importable there",
            type(error).__name__,
            error,
        )
        return False
    return True
