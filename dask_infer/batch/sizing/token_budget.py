"""How many padded tokens go into one forward, and what another forward costs.

Two things are learned from the forwards of a replica. The *budget* climbs while
larger forwards bring more tokens a second. The *forward cost*, a forward's fixed time
in padded tokens, is fitted to what forwards of different sizes took; it says where a
batch is better cut than padded (`plan_tokens`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from dask_infer.batch.sizing.batch_size import SHARE
from dask_infer.batch.sizing.boundaries import FORWARD_COST
from dask_infer.batch.sizing.hill_climber import WARM_UP, HillClimber

#: Padded tokens of the first forwards.
FIRST_TOKENS = 1024

#: Beyond this many padded tokens nothing was ever gained.
MOST_TOKENS = 1 << 19

#: Bytes of activations alive at once for each padded token: four blocks of 4 x 1,024
#: floats. Where a model takes more, an out-of-memory error lowers it.
TOKEN_BYTES = 64 * 1024

#: After how many forwards the forward cost is fitted.
FITS = (8, 16, 32, 64, 128)

#: The fit needs this many sizes of forwards, the largest so many times the smallest.
SIZES, SPREAD = 3, 4.0

#: Bounds of the forward cost, in padded tokens.
COSTS = (4.0, 16_384.0)


class TokenBudget(HillClimber):
    """Most padded tokens of a forward: the user's bound, or climbed to.

    Rows come by falling length, so the two budgets that are compared see rows of the
    same length, and a forward of short rows is never compared with one of long rows.

    Parameters
    ----------
    bound
        The user's most padded tokens; None to learn the best.
    free_bytes
        Bytes free on the device; None where unknown.
    """

    unit = "tokens"
    #: What another forward costs, in padded tokens.
    forward_cost: float

    def __init__(self, bound: int | None = None, free_bytes: int | None = None) -> None:
        limit = MOST_TOKENS
        if free_bytes is not None:
            limit = min(limit, max(1, int(free_bytes * SHARE / TOKEN_BYTES)))
        super().__init__(min(FIRST_TOKENS, limit) if bound is None else bound, limit)
        self.settled = self.settled or bound is not None
        self.forward_cost = float(FORWARD_COST)
        self._forwards = 0
        #: Padded tokens and seconds of the fastest forward in each class of sizes.
        self._fastest: dict[int, tuple[int, float]] = {}

    def __repr__(self) -> str:
        cost = f"{self.forward_cost:.0f} a forward"
        return super().__repr__().replace(",", f", {cost},")

    def observe(self, tokens: int, seconds: float) -> None:
        """Count one forward of so many padded tokens."""
        if tokens < 1 or seconds <= 0:
            return
        super().observe(tokens, seconds)
        with self._lock:
            self._forwards += 1
            if not WARM_UP < self._forwards <= FITS[-1]:
                return
            learned = self._fit(tokens, seconds) and self.settled
        if learned:
            self._report()

    def resume(self, state: Mapping[str, float]) -> None:
        """Go on with what an earlier replica has learned."""
        super().resume(state)
        with self._lock:
            cost = float(state["forward_cost"])
            self.forward_cost = min(max(cost, COSTS[0]), COSTS[1])

    def state(self) -> dict[str, float]:
        """Return what was learned, for `resume`."""
        return {"size": self.size, "forward_cost": self.forward_cost}

    def _fit(self, tokens: int, seconds: float) -> bool:
        """Fit a line to the fastest forwards; return whether the cost was changed.

        What disturbs a forward only makes it slower. Errors count relative to the time
        that was taken, else the largest forwards alone would decide.
        """
        size = round(2 * math.log2(tokens))
        known = self._fastest.get(size)
        if known is None or seconds / tokens < known[1] / known[0]:
            self._fastest[size] = (tokens, seconds)
        if self._forwards not in FITS:
            return False
        seen = np.array(list(self._fastest.values()))
        if len(seen) < SIZES or seen[:, 0].max() < SPREAD * seen[:, 0].min():
            return False
        weighted = np.column_stack([1 / seen[:, 1], seen[:, 0] / seen[:, 1]])
        fixed, each = np.linalg.lstsq(weighted, np.ones(len(seen)), rcond=None)[0]
        if each <= 0:
            return False
        self.forward_cost = float(np.clip(fixed / each, *COSTS))
        return True
