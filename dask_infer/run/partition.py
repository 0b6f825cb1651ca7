"""A partition through its model: the replica of this process, or a group elsewhere."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dask_infer.replica.setup_worker import setup_worker
from dask_infer.replica.worker_place import current_place, current_worker
from dask_infer.run.feeder import Feeder
from dask_infer.run.local_runner import local_runner
from dask_infer.run.user_code import read_code
from dask_infer.spec import Job


def predict_rows(frame: pd.DataFrame, job: Job) -> dict[str, Any]:
    """Return the output columns of `frame`'s rows, in their order."""
    worker = current_worker()
    if worker is not None:
        setup_worker(worker)
    code = read_code(job.code)
    if job.group is not None:
        from dask_infer.pipeline.worker.remote_runner import remote_runner

        with remote_runner(job, code) as runner:
            return Feeder(frame, job, code, runner).columns()
    with local_runner(job, code, current_place()) as runner:
        return Feeder(frame, job, code, runner).columns()
