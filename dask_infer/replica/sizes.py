"""The batch-size policies of one replica, and what they remember of earlier ones.

What a policy has learned is kept beside the content store, a small file for each model,
dtype, kind of device and input signature. So the other processes of the host, and those
that are started later, begin where one has settled. Hosts learn each for themselves:
their cores and memory differ. A file is a hint and no more: one that cannot be read or
written is ignored, one that is old is learned anew, and one that is wrong is replaced
when memory runs out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dask_infer import config
from dask_infer.batch.sizing.batch_size import BatchSize
from dask_infer.batch.sizing.hill_climber import FixedSize
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.errors import InferError
from dask_infer.model.store.blob_store import LEARNED, default_store

logger = logging.getLogger(__name__)

Policy = TypeVar("Policy", bound=FixedSize)


class Sizes:
    """Policies by what a row looks like and by the user's bound, for all threads.

    Parameters
    ----------
    model
        Names the model in the log.
    owner
        What sizes depend on besides the rows: content key, dtype and device.
    """

    def __init__(self, model: str, owner: tuple[Any, ...]) -> None:
        self.model = model
        self.owner = owner
        self._policies: dict[Any, FixedSize] = {}
        self._ran_out_of_memory = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Sizes {', '.join(self.describe()) or 'none yet'}>"

    def describe(self) -> list[str]:
        """Return each policy in words."""
        return [repr(policy) for policy in self.policies()]

    def policies(self) -> list[FixedSize]:
        """Return all policies, oldest first."""
        with self._lock:
            return list(self._policies.values())

    def rows(
        self,
        signature: Any,
        bound: int | None,
        bytes_per_row: float,
        free_bytes: Callable[[], int],
    ) -> FixedSize:
        """Return the policy for rows of this signature.

        Parameters
        ----------
        signature
            Inputs that share a policy.
        bound
            The user's most rows; None to learn the best.
        bytes_per_row
            Bytes of one row's tensors.
        free_bytes
            Returns what a forward may take; called for a new policy only.
        """

        def build() -> FixedSize:
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
            theirs, ran_out = dict(other._policies), other._ran_out_of_memory
        with self._lock:
            self._policies = {**theirs, **self._policies}
            self._ran_out_of_memory |= ran_out

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether any batch was too large for the device."""
        return self._ran_out_of_memory

    def first_out_of_memory(self) -> bool:
        """Whether a batch is too large for the device for the first time."""
        with self._lock:
            first, self._ran_out_of_memory = not self._ran_out_of_memory, True
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

        def learned(changed: FixedSize) -> None:
            logger.info('model "%s" goes on with %r', self.model, changed)
            remember(key, changed.state())

        known = recall(key)
        if known is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
                policy.resume(known)
        policy.on_learned = learned
        return policy


def remember(key: str, state: Mapping[str, float]) -> None:
    """Store what was learned; the last writer wins."""
    if config.get_seconds("batch.remember") is None:
        return
    with contextlib.suppress(OSError, InferError):
        path = _path(key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(state, file)
        os.replace(temporary, path)


def recall(key: str) -> dict[str, float] | None:
    """Return what was learned, unless that is long ago or cannot be read."""
    lasts = config.get_seconds("batch.remember")
    if lasts is None:
        return None
    try:
        path = _path(key)
        if time.time() - path.stat().st_mtime > lasts:
            return None
        state = json.loads(path.read_text())
    except (OSError, ValueError, InferError):
        return None
    return state if isinstance(state, dict) else None


def _path(key: str) -> Path:
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return default_store().root / LEARNED / f"{name}.json"
