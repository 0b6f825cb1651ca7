"""Workers shared out among models that all rows go through: the slowest sets the pace.

Models side by side take as long as the slowest of them: its seconds of a row divided
by its replicas. Giving each next worker to the model that is the slowest so far is
optimal: no other sharing makes the slowest faster.
"""

from __future__ import annotations

from collections.abc import Sequence


def next_replica(seconds: Sequence[float], replicas: Sequence[int]) -> int:
    """Return which model is the slowest, and gets the next replica.

    Parameters
    ----------
    seconds
        Seconds of a row in one replica, by model.
    replicas
        Replicas that each has.
    """
    paces = [s / max(1, n) for s, n in zip(seconds, replicas, strict=True)]
    return paces.index(max(paces))
