"""Window, microbatch and the time that a pipeline takes, as formulas.

Stages take `seconds` and the hops between them `hops`, each for one microbatch; every
stage and every hop works on one microbatch at a time and all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

#: Microbatches in the window for each stage. With 30 % jitter of the stages' times one
#: kept 82 % of the throughput, two 95 %, three 97 %, and each costs its activations.
DEPTH = 2

#: Most of a microbatch's time that its fixed cost may take.
FIXED_SHARE = 0.1


def window(stages: int) -> int:
    """Return how many microbatches to admit: the default of `Layout(window="auto")`."""
    return DEPTH * stages


def microbatch(
    overhead: float,
    seconds_per_row: float,
    *,
    share: float = FIXED_SHARE,
    most: int | None = None,
) -> int:
    """Return the fewest rows whose fixed cost is under `share` of the whole.

    Parameters
    ----------
    overhead
        Seconds that a microbatch costs whatever its size: message, launch, thread.
    seconds_per_row
        Seconds that a row adds, on the slowest stage.
    share
        What is still acceptable, between 0 and 1.
    most
        Rows that memory or the user allow.

    Raises
    ------
    ValueError
        If rows cost nothing and nothing else limits them.
    """
    if seconds_per_row <= 0:
        if most is None:
            raise ValueError(
                "rows that take no time need a limit of their own: pass most="
            )
        return most
    rows = floor(overhead * (1 / share - 1) / seconds_per_row) + 1
    return rows if most is None else max(1, min(rows, most))


def fixed_and_per_row(
    fewer: tuple[int, float], more: tuple[int, float]
) -> tuple[float, float]:
    """Return the fixed seconds of a forward and those of a row, from two timings.

    Not all of a forward grows with its rows: kernels are launched and weights are read
    once. That belongs into the overhead of `microbatch`; the time of a few rows divided
    by their number would make it look like the cost of a row, and microbatches of one.

    Parameters
    ----------
    fewer, more
        Rows and seconds of a small forward and of a larger one.
    """
    rows = more[0] - fewer[0]
    if rows <= 0:
        raise ValueError(f"{fewer[0]} and {more[0]} rows are not fewer and more")
    per_row = max(0.0, (more[1] - fewer[1]) / rows)
    return max(0.0, fewer[1] - fewer[0] * per_row), per_row


def bottleneck(seconds: Sequence[float], hops: Sequence[float] = ()) -> float:
    """Return the seconds between two microbatches in steady state."""
    return max(*seconds, *hops, 0.0)


def latency(seconds: Sequence[float], hops: Sequence[float] = ()) -> float:
    """Return the seconds that one microbatch is on its way."""
    return sum(seconds) + sum(hops)


def throughput(
    window: int, seconds: Sequence[float], hops: Sequence[float] = ()
) -> float:
    """Return microbatches a second: as the slowest allows, or as the window does."""
    return min(1 / bottleneck(seconds, hops), window / latency(seconds, hops))


def makespan(
    microbatches: int, seconds: Sequence[float], hops: Sequence[float] = ()
) -> float:
    """Return the seconds from the first microbatch in to the last one out."""
    if not microbatches:
        return 0.0
    waits = (microbatches - 1) * bottleneck(seconds, hops)
    return latency(seconds, hops) + waits


def efficiency(microbatches: int, stages: int) -> float:
    """Return the busy share of equal stages that fill and drain once."""
    return microbatches / (microbatches + stages - 1)
