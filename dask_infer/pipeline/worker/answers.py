"""The answers of handlers to the calls of other workers.

A handler answers with data and never raises what means a closed connection: Dask would
close its caller's connection without an answer (distributed 2026.8.0), and the failure
would count as that of the wrong stage.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeAlias

from dask_infer.pipeline.messages.microbatch import Failure, Header, StageLost
from dask_infer.pipeline.worker.stage_server import StageServer

Answer: TypeAlias = dict[str, Any]

DONE: Answer = {"status": "done"}
LOST: Answer = {"status": "lost"}


def failed(failure: Failure) -> Answer:
    """Return the answer of a microbatch that failed."""
    return {"status": "failed", "failure": vars(failure)}


async def answered(
    stage: StageServer, header: Header, work: Coroutine[Any, Any, Answer]
) -> Answer:
    """Do a stage's part for a microbatch, within its epoch."""
    try:
        answer: Answer = await stage.within_epoch(header.target.epoch, work)
        return answer
    except (StageLost, OSError):
        return LOST
