"""The batch-size policies of one replica, and what they remember of earlier ones.

What a policy has learned is remembered for each model, dtype, kind of device and input
signature. So the other processes of the host, and those that are started later, begin
where one has settled. What is wrong is replaced when memory runs out.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from dask_infer.batch.sizing.batch_size import BatchSize
from dask_infer.batch.sizing.hill_climber import FixedSize, HillClimber
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.replica.remembered import recall, remember

logger = logging.getLogger(__name__)

Policy = TypeVar("Policy", bound=HillClimber)


class Sizes:
    """Policies by what a row looks like and by the user's bound, for all threads.

    Sizes depend on the rows and on `owner`: content key, dtype and device.
    """

    def __init__(self, model: str, owner: tuple[Any, ...]) -> None:
        self.model = model
        self.owner = owner
        self._policies: dict[Any, HillClimber] = {}
        #: Any batch was too large for the device.
        self.ran_out_of_memory = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Sizes {', '.join(self.describe()) or 'none yet'}>"

    def describe(self) -> list[str]:
        """Return each policy in words."""
        return [repr(policy) for policy in self.policies()]

    def policies(self) -> list[HillClimber]:
        """Return all policies, oldest first."""
        with self._lock:
            return list(self._policies.values())

    def rows(
        self,
        signature: Any,
        bound: int | None,
        bytes_per_row: float,
        free_bytes: Callable[[], int],
    ) -> HillClimber:
        """Return the policy for rows of this signature.

        `bound` is the user's most rows; None to learn the best. `free_bytes` returns
        what a forward may take; it is called for a new policy only.
        """

        def build() -> HillClimber:
            if bound is not None:
                return FixedSize(bound)
            policy = BatchSize()
            policy.start(bytes_per_row, free_bytes=free_bytes())
            return self._remembered(policy, ("rows", signature))

        return self._known(("rows", signature, bound), build)

    def tokens(
        self, signature: Any, bound: int | None, free_bytes: Callable[[], int]
    ) -> TokenBudget:
        """Return the policy for padded tokens; arguments are as of `rows`."""

        def build() -> TokenBudget:
            policy = TokenBudget(bound, free_bytes() if bound is None else None)
            return self._remembered(policy, ("tokens", signature, bound))

        return self._known(("tokens", signature, bound), build)

    def adopt(self, other: Sizes) -> None:
        """Take over the policies of another replica of the same model."""
        with other._lock:
            theirs, ran_out = dict(other._policies), other.ran_out_of_memory
        with self._lock:
            self._policies = {**theirs, **self._policies}
            self.ran_out_of_memory |= ran_out

    def first_out_of_memory(self) -> bool:
        """Whether a batch is too large for the device for the first time."""
        with self._lock:
            first, self.ran_out_of_memory = not self.ran_out_of_memory, True
            return first

    def _known(self, key: Any, build: Callable[[], Policy]) -> Policy:
        with self._lock:
            policy: Any = self._policies.get(key)
            if policy is None:
                policy = self._policies[key] = build()
            return policy  # type: ignore[no-any-return]

    def _remembered(self, policy: Policy, what: tuple[Any, ...]) -> Policy:
        """Start from what is known, and store what is learned."""
        key = repr((self.owner, what))

        def learned(changed: HillClimber) -> None:
            logger.info('model "%s" goes on with %r', self.model, changed)
            remember(key, changed.state())

        known = recall(key)
        if known is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
                policy.resume(known)
        policy.on_learned = learned
        return policy
