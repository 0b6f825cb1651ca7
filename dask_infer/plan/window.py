"""The window: how many microbatches may be in flight, admitted and not yet finished.

Every number of the rule is here. Who enforces them: each instance of a group admits at
most `window_size` (`pipeline/worker/admission.py`); a feeder has at most `feeder_share`
unanswered (`pipeline/worker/remote_runner.py`).
"""

from __future__ import annotations

from math import ceil
from typing import Literal

#: Microbatches in the window for each stage. With 30 % jitter of the stages' times one
#: kept 82 % of the throughput, two 95 %, three 97 %, and each costs its activations
#: (benchmarks/window).
DEPTH = 2


def window_size(asked: int | Literal["auto"], stages: int) -> int:
    """Return how many microbatches one instance of a group admits.

    Parameters
    ----------
    asked
        `Layout.window`: a number, or ``"auto"`` for `DEPTH` a stage.
    stages
        Stages of the instance.
    """
    return DEPTH * stages if asked == "auto" else asked


def feeder_share(size: int, instances: int, feeders: int) -> int:
    """Return how many microbatches one feeder sends before it waits for outputs.

    All feeders together fill the windows of all instances.

    Parameters
    ----------
    size
        The window of one instance.
    instances, feeders
        How many there are now.
    """
    return size * max(1, ceil(instances / max(1, feeders)))
