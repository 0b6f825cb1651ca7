"""Counters of this process and of clusters, read by the client.

`Counts` is read by a thread of its own: asking a scheduler waits for the client's
event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from distributed import Worker

from dask_infer._dask import run_on_loop
from dask_infer.metrics.cluster_sums import ClusterSums, Message
from dask_infer.metrics.sums import Label, Sums, from_message
from dask_infer.metrics.totals import totals

#: Seconds that workers have to send their numbers.
PATIENCE = 3.0


def local_jobs() -> dict[Label, Sums]:
    """Return the sums of the jobs that ran in this process without a cluster."""
    sums = totals.snapshot("local")
    return {label: each for label, each in sums.items() if label.job}


async def watch(client: Any) -> bool:
    """Have the scheduler keep counters; False where it cannot."""
    from dask_infer.dashboard.watch import register_watch

    return await register_watch(client, logging.INFO)


async def refresh(client: Any) -> None:
    """Have all workers send their numbers now, not with their next heartbeats."""
    with contextlib.suppress(Exception):  # a worker that is lost, or does not answer
        asked = client.run(_heartbeat, on_error="ignore")
        await asyncio.wait_for(asked, PATIENCE)


async def _heartbeat(dask_worker: Worker) -> None:
    await dask_worker.heartbeat()


async def read_workers(client: Any, sums: ClusterSums | None = None) -> ClusterSums:
    """Add up what the workers of a scheduler without counters sent with heartbeats."""
    sums = ClusterSums() if sums is None else sums
    workers = (await client.scheduler.identity(n_workers=-1))["workers"]
    for address in sums.workers.keys() - workers.keys():
        sums.remove(address)
    for address, worker in workers.items():
        # None, or of another version.
        with contextlib.suppress(KeyError, TypeError, ValueError):
            sums.update(address, Message.read(worker["metrics"]["infer"]))
    return sums


async def _scheduler_jobs(client: Any) -> dict[Label, Sums]:
    return from_message(await client.scheduler.infer_sums())


class ClusterJobs:
    """Sums of the jobs of a cluster, or of what is added from now on.

    Where its scheduler cannot import this package, they are added up here, from what
    the workers sent with their heartbeats.
    """

    def __init__(self, client: Any, *, from_now: bool) -> None:
        self.client = client
        self._own = None if run_on_loop(client, watch) else ClusterSums()
        self._before = self._read() if from_now else {}
        self._last: dict[Label, Sums] = {}

    def read(self) -> dict[Label, Sums]:
        """Return them as the scheduler knows them now, or as a closed client did."""
        if self.client.status == "running":
            self._last = _since(self._read(), self._before)
        return self._last

    def _read(self) -> dict[Label, Sums]:
        if self._own is None:
            jobs: dict[Label, Sums] = run_on_loop(self.client, _scheduler_jobs)
            return jobs
        run_on_loop(self.client, read_workers, self._own)
        return self._own.by_job()


class Counts:
    """What was counted in this process and on clusters.

    Parameters
    ----------
    from_now
        Whether only what is added from now on counts.
    local
        Whether this process may compute as well.
    """

    def __init__(self, *, from_now: bool, local: bool) -> None:
        self._from_now, self._local = from_now, local
        self._local_before = local_jobs() if from_now else {}
        self._clusters: list[ClusterJobs] = []

    def add(self, client: Any) -> None:
        """Count on a client's cluster, too."""
        if all(jobs.client is not client for jobs in self._clusters):
            self._clusters.append(ClusterJobs(client, from_now=self._from_now))

    def refresh(self) -> None:
        """Have the workers send what they counted."""
        for jobs in self._clusters:
            if jobs.client.status == "running":
                run_on_loop(jobs.client, refresh)

    def read(self) -> dict[Label, Sums]:
        """Return what was added since then, by job."""
        here = local_jobs() if self._local else {}
        result = _since(here, self._local_before)
        for jobs in self._clusters:
            for label, sums in jobs.read().items():
                result.setdefault(label, Sums()).add(sums)
        return result


def _since(
    now: Mapping[Label, Sums], before: Mapping[Label, Sums]
) -> dict[Label, Sums]:
    return {label: sums.since(before.get(label)) for label, sums in now.items()}
