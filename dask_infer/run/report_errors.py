"""The failed rows of a partition, told: in the worker's log, and as an event of Dask.

Events reach every client: ``client.get_events("infer-errors")`` returns them when a
computation is over, ``client.subscribe_topic`` as they come (distributed 2026.8.0).
"""

from __future__ import annotations

import logging

from dask_infer.faults.error_budget import ErrorBudget
from dask_infer.replica.worker_place import current_worker

logger = logging.getLogger(__name__)

#: Topic of the events.
TOPIC = "infer-errors"


def report(budget: ErrorBudget, model: str, where: str) -> None:
    """Say how many rows of a partition are left out, and how the first failed."""
    if not budget.failed:
        return
    logger.warning(
        '%d of %d rows failed in model "%s" on %s and are missing; first %s',
        budget.failed, budget.rows, model, where, budget.first,
    )  # fmt: skip
    worker = current_worker()
    if worker is not None:
        event = {
            "model": model,
            "failed": budget.failed,
            "rows": budget.rows,
            "first": budget.first,
        }
        worker.log_event(TOPIC, event)
