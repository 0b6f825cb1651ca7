"""Why a job is slow, as the client asks for it."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Awaitable, Mapping
from typing import Any

from dask.utils import format_time

from dask_infer.metrics.sums import to_message
from dask_infer.replica.residents import current_client
from dask_infer.watching.bottleneck import Bottleneck, find_bottleneck
from dask_infer.watching.counts import local_jobs

#: Seconds for which the first numbers of a short job may be on their way.
PATIENCE, INTERVAL = 3.0, 0.2


class Why:
    """What limits jobs, as text and HTML.

    Attributes
    ----------
    jobs
        A `Bottleneck` of each: `model`, `rows`, `cause`, `remedy`, `shares` of time by
        activity, `stages`, `notes`.
    """

    def __init__(self, jobs: list[Bottleneck]) -> None:
        self.jobs = jobs

    def __repr__(self) -> str:
        if not self.jobs:
            return "No prediction has run yet."
        return "\n\n".join(_text(job) for job in self.jobs)

    def _repr_html_(self) -> str:
        if not self.jobs:
            return f"<p>{self!r}</p>"
        return "".join(_html(job) for job in self.jobs)


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
    client = client or current_client()
    if client is None:
        return Why([find_bottleneck(record) for record in _local_records()])
    if client.asynchronous:
        return _ask(client)
    answer: Why = client.sync(_ask, client)
    return answer


async def _ask(client: Any) -> Why:
    deadline = time.monotonic() + PATIENCE
    while True:
        # None of a scheduler where nothing was predicted.
        records = await client.scheduler.infer_jobs() or []
        if records or time.monotonic() > deadline:
            break
        await asyncio.sleep(INTERVAL)
    return Why([find_bottleneck(record) for record in _latest(records)])


def _latest(records: list[Any]) -> list[Any]:
    """Return the jobs that run, or else the last one, with those beside it."""
    running = [record for record in records if record["running"]]
    if running or not records:
        return running
    start = max(records, key=lambda record: record["end"])["start"]
    return [record for record in records if record["end"] > start] or records[-1:]


def _local_records() -> list[dict[str, Any]]:
    """Return the record of the last job of this process, like a scheduler's."""
    jobs = local_jobs()
    running = [label for label, sums in jobs.items() if sums.levels.get("partitions")]
    return [
        {
            "model": label.model,
            "job": label.job,
            "start": None,
            "end": None,
            "running": bool(running),
            "sums": to_message({label: jobs[label]}),
            "stages": [],
        }
        for label in running or list(jobs)[-1:]
    ]


def _title(job: Bottleneck) -> str:
    state = "running, " if job.running else ""
    duration = "" if not job.seconds else f" in {format_time(job.seconds)}"
    return f"{job.model} ({state}job {job.job}): {job.rows:,} rows{duration}"


def _lines(job: Bottleneck) -> dict[str, Mapping[str, float]]:
    stages = {f"stage {stage}": shares for stage, shares in job.stages.items()}
    return {"partitions": job.shares, **stages}


def _text(job: Bottleneck) -> str:
    lines = [_title(job)]
    for name, shares in _lines(job).items():
        parts = [f"{activity} {share:.0%}" for activity, share in shares.items()]
        lines.append(f"  {name}: {', '.join(parts)}")
    lines += [f"  {job.cause}", f"  {job.remedy}"]
    lines += [f"  {note}" for note in job.notes]
    return "\n".join(lines)


def _html(job: Bottleneck) -> str:
    lines = _lines(job)
    activities = list(dict.fromkeys(a for shares in lines.values() for a in shares))
    head = "".join(f"<th>{activity}</th>" for activity in ["", *activities])
    rows = "".join(
        f"<tr><th>{name}</th>"
        + "".join(f"<td>{shares.get(a, 0.0):.0%}</td>" for a in activities)
        + "</tr>"
        for name, shares in lines.items()
    )
    said = "<br>".join(html.escape(each) for each in (job.remedy, *job.notes))
    return (
        f"<p><strong>{html.escape(job.cause)}</strong><br>{html.escape(_title(job))}"
        f"</p><table><tr>{head}</tr>{rows}</table><p>{said}</p>"
    )
