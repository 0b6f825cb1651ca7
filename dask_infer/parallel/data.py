"""A partition through its model: the replica of this process, or a group elsewhere."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dask_infer.parallel.code import read_code
from dask_infer.parallel.feeder import Feeder
from dask_infer.parallel.local import local_lane
from dask_infer.replica.attach import attach
from dask_infer.replica.place import current_place, current_worker
from dask_infer.spec import Job


def predict_rows(frame: pd.DataFrame, job: Job) -> dict[str, Any]:
    """Return the output columns of `frame`'s rows, in their order."""
    worker = current_worker()
    if worker is not None:
        attach(worker)
    code = read_code(job.code)
    if job.group is not None:
        from dask_infer.parallel.pipeline.remote import remote_lane

        with remote_lane(job, code) as lane:
            return Feeder(frame, job, code, lane).columns()
    with local_lane(job, code, current_place()) as lane:
        return Feeder(frame, job, code, lane).columns()
