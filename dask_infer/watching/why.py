"""Why a job is slow, as the client asks for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from typing import Any

from dask.utils import format_time

from dask_infer.metrics.bottleneck import Bottleneck, find_bottleneck
from dask_infer.metrics.job_records import PAUSE, JobRecord, Look, stages_of
from dask_infer.metrics.sums import Label, Sums
from dask_infer.replica.residents import current_client
from dask_infer.views.view import View, Viewed
from dask_infer.watching.counts import local_jobs, read_workers, refresh, watch

#: Seconds for which the first numbers of a short job may take to arrive.
PATIENCE, INTERVAL = 3.0, 0.2


NOTHING = View(
    "No prediction has run yet.",
    sentences=("What workers of another version of dask_infer run is not counted.",),
)


class Why(Viewed):
    """What limits jobs, as text and HTML.

    Attributes
    ----------
    jobs
        A `Bottleneck` of each: `model`, `rows`, `cause`, `remedy`, `shares` of time by
        activity, `stages`, `notes`.
    """

    def __init__(self, jobs: list[Bottleneck]) -> None:
        self.jobs = jobs

    def views(self) -> list[View]:
        """Return a view of each job."""
        views = [_view(job) for job in self.jobs]
        return views or [NOTHING]


def why(client: Any = None) -> Why | Awaitable[Why]:
    """Say what limits the jobs that run, or the last one, and what to change.

    Parameters
    ----------
    client
        A `distributed.Client`; by default the current one, or this process where
        there is none.

    Returns
    -------
    Why
        For each job the shares of time of its partitions' threads, of its stages, the
        cause in words and a remedy that names the argument to change. An awaitable of
        it where the client is asynchronous.
    """
    client = current_client(client)
    if client is None:
        return Why([find_bottleneck(record) for record in _local_records()])
    if client.asynchronous:
        return _ask(client)
    answer: Why = client.sync(_ask, client)
    return answer


async def _ask(client: Any) -> Why:
    read = _records_of_scheduler if await watch(client) else _records_of_workers
    await refresh(client)
    deadline = time.monotonic() + PATIENCE
    while not (records := await read(client)) and time.monotonic() < deadline:
        await asyncio.sleep(INTERVAL)
    return Why([find_bottleneck(record) for record in records])


async def _records_of_scheduler(client: Any) -> list[Any]:
    """Return the jobs that run, or else the last one, with those beside it."""
    return latest_records(await client.scheduler.infer_jobs())


def latest_records(records: list[Any]) -> list[Any]:
    """Return those of jobs that run, or else of the last one, and those beside them.

    Models of one task take turns: one that ran a moment ago may go on.
    """
    running = [record for record in records if record["running"]]
    if not records:
        return []
    last = max(running or records, key=lambda record: record["end"])
    since = last["start"]
    if running:
        since = max(since, last["end"] - PAUSE)
    return [r for r in records if r["running"] or r["end"] > since] or [last]


async def _records_of_workers(client: Any) -> list[Any]:
    """Return the same, as far as workers know it, of a scheduler without counters."""
    sums = await read_workers(client)
    return _records(sums.by_job(), sums.by_model())


def _local_records() -> list[Any]:
    """Return the jobs of this process that run, or else the last one."""
    return _records(local_jobs(), {})


def _records(
    jobs: Mapping[Label, Sums], models: Mapping[Label, Sums]
) -> list[dict[str, Any]]:
    """Return the jobs that run, or else the last one, like a scheduler's records."""
    records = []
    for label, sums in jobs.items():  # from and to an unknown time
        now = Look(0.0, sums, stages_of(label.model, models))
        records.append(JobRecord(label, 0.0, Look(0.0), now))
    running = [record for record in records if record.running]
    return [record.to_message() for record in running or records[-1:]]


def _view(job: Bottleneck) -> View:
    state = "running, " if job.running else ""
    duration = "" if not job.seconds else f" in {format_time(job.seconds)}"
    title = f"{job.model} ({state}job {job.job}): {job.rows:,} rows{duration}"
    shares = {"partitions": job.shares}
    shares |= {f"stage {stage}": parts for stage, parts in job.stages.items()}
    lines = {
        name: {activity: f"{share:.0%}" for activity, share in parts.items()}
        for name, parts in shares.items()
    }
    return View(title, lines, (job.cause, job.remedy, *job.notes))
