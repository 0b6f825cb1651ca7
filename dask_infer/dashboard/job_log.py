"""A line in the scheduler's log at the end of each job: what `why` says of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from dask.utils import format_time

from dask_infer.metrics.bottleneck import find_bottleneck
from dask_infer.metrics.job_records import JobRecord
from dask_infer.metrics.sums import Label

logger = logging.getLogger(__name__)

#: Seconds without a new number from which a job has ended: a partition that is read
#: meanwhile is counted after that.
ENDED = 60.0


class JobLog:
    """Logs each job once it has ended, and again if it went on after that."""

    def __init__(self) -> None:
        #: Of each job the end that was logged, in seconds since the epoch.
        self._logged: dict[Label, float] = {}

    def update(
        self, now: float, records: Mapping[Label, JobRecord], *, last: bool = False
    ) -> None:
        """Log what has ended; all that is known where this is the last call."""
        for label, record in records.items():
            end = record.now.at
            ended = not record.running and now - end >= ENDED
            ended = ended or (last and record.now.sums.count("rows") > 0)
            if ended and self._logged.get(label) != end:
                self._logged[label] = end
                log_job(record)
        for label in self._logged.keys() - records.keys():
            del self._logged[label]


def log_job(record: JobRecord) -> None:
    """Log what limited a job."""
    job = find_bottleneck(record.to_message())
    logger.info(
        "%s (job %s): %s rows%s; %s",
        *(job.model, job.job, f"{job.rows:,}"),
        f" in {format_time(job.seconds)}" if job.seconds else "",
        " ".join((f"{job.cause}.", job.remedy, *job.notes)),
    )
