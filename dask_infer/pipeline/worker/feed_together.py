"""Several feeders of one partition's task, each in a thread of its own.

The thread of the task waits for them: it alone may be left where a stage needs one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from distributed import Reschedule

from dask_infer._dask import as_part_of_task, current_task_key
from dask_infer.pipeline.worker.microbatch_comms import comms_of
from dask_infer.pipeline.worker.remote_runner import Waiting, failed_beside
from dask_infer.replica.worker_place import current_worker
from dask_infer.run.runner import Abandoned

T = TypeVar("T")


def feed_together(
    feeders: Sequence[Callable[[], T]], meanwhile: Callable[[], None]
) -> list[T]:
    """Return what each feeder returns; `meanwhile` runs in the calling thread.

    Where one raises, the others give up, and that error is raised.
    """
    worker = current_worker()
    if worker is None:  # they refuse to run
        return [feed() for feed in feeders]
    failed = threading.Event()
    token = failed_beside.set((*failed_beside.get(), failed))

    def run(feed: Callable[[], T]) -> T:
        try:
            return feed()
        except BaseException:
            failed.set()
            raise

    errors: list[BaseException | None] = []
    try:
        with ThreadPoolExecutor(len(feeders), "dask-infer-tower") as pool:
            parts = [as_part_of_task(partial(run, feed)) for feed in feeders]
            futures = [pool.submit(part) for part in parts]
            wait = Waiting(worker, comms_of(worker), current_task_key())
            try:
                meanwhile()
                return [wait(future) for future in futures]
            except BaseException as error:
                failed.set()
                errors.append(error)
    finally:
        failed_beside.reset(token)
    errors += [future.exception() for future in futures]
    raise next(filter(_is_cause, errors), None) or Reschedule


def _is_cause(error: BaseException | None) -> bool:
    """Whether it is no mere consequence of another feeder's error."""
    return error is not None and not isinstance(error, (Abandoned, Reschedule))
