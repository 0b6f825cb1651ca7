"""What runs the batches of a partition: the replica of this process, or a group.

A runner belongs to one partition and is used by the partition's thread alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.sizing.hill_climber import HillClimber
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.device.stream import Pending
from dask_infer.faults.bisect import Rows
from dask_infer.replica.measured import NO_FORWARD, ForwardTimes
from dask_infer.replica.sizes import Sizes
from dask_infer.spec import Inputs
from dask_infer.spec.model_spec import Interface
from dask_infer.spec.token_rules import TokenRules

logger = logging.getLogger(__name__)


class Abandoned(BaseException):
    """The partition is not wanted any more: no failure, and no row's fault."""


class Runner:
    """Runs batches; each kind of runner sets these attributes and defines `send`."""

    #: What the model wants to be called with.
    interface: Interface
    #: Dtype of floating inputs; None for torch's default.
    floating: torch.dtype | None
    #: How the called method takes tokens.
    token_rules: TokenRules
    #: The job's inputs, stacked integers as the model reads them.
    inputs: Inputs
    #: Names and dtypes of arguments that the model casts; none where unknown.
    dtypes: Sequence[tuple[str, str]]
    #: Rows of a batch that were planned for a chain of stages; None for others.
    microbatch: int | None = None
    #: Batch-size policies, shared by all partitions.
    sizes: Sizes
    #: Those that this partition is batched by, and the user's most rows.
    _size: HillClimber
    _budget: TokenBudget | None = None
    _bound: int | None
    #: Moves an encoded batch to where the device copies it from; None for no need.
    pin: Callable[[Batch], Batch] | None = None
    #: Batches that were sent wait until all of the partition are: see `kept`.
    waits: bool = False
    #: Kind of the device whose times are remembered; None where they are not.
    observed_kind: str | None = None
    #: What the forwards took that other processes ran.
    elsewhere: ForwardTimes = NO_FORWARD
    #: Seconds by which batches are compared; asked by the partition's thread.
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    @property
    def window(self) -> int:
        """Most batches sent whose outputs have not been waited for.

        1 where outputs must be taken before the next forward, 2 where copies overlap
        with it, more for a chain of stages.
        """
        return 1

    @property
    def where(self) -> str:
        """Device and worker, for messages."""
        raise NotImplementedError

    def batch_size(
        self, signature: object, bytes_per_row: float, bound: int | None
    ) -> HillClimber:
        """Return the policy for batches of this signature."""
        self._bound = bound
        self._size = self.sizes.rows(signature, bound, bytes_per_row, self.free_bytes)
        return self._size

    def token_budget(self, signature: object, bound: int | None) -> TokenBudget:
        """Return the policy for padded batches of this signature."""
        self._budget = self.sizes.tokens(signature, bound, self.free_bytes)
        return self._budget

    def free_bytes(self) -> int:
        """Bytes that a forward may take."""
        raise NotImplementedError

    def send(self, batch: Batch, rows: Rows | None = None) -> Pending:
        """Start the forward of a batch; may block until there is room.

        `rows` are those of the partition; None where one is only tried.

        Returns what waits for its fields, after `postprocess`; outputs come back in the
        order of sending. Both raise `StepFailed` where the step is known, and
        `DeadlineExceeded` after the timeout; anything else is taken as the forward's.
        """
        raise NotImplementedError

    def next_back(self, pendings: Iterator[Pending]) -> int:
        """Return which of the batches in flight to collect next; may wait for it.

        The first, but for one whose error ends the partition at once.
        """
        return 0

    def kept(self, batch: Batch) -> Batch:
        """Return what has to stay of a batch that was sent, if it `waits`.

        Its padding is read.
        """
        return batch

    def cuts(self, error: BaseException) -> Collection[int]:
        """Return places between rows at which to cut a batch that failed with `error`.

        Where the runner has found out which of them fail. They are run again.
        """
        return ()

    def count(self, rows: int) -> None:
        """Add rows whose outputs have come back."""

    def discard(self) -> None:
        """Leave a replica that may be stuck; the next batch goes to a fresh one."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether `error` says that memory ran out there, which is no row's fault."""
        return is_out_of_memory(error)

    def release_memory(self) -> None:
        """Give freed blocks back, after memory ran out."""

    def warn_of_memory(self, rows: int, fewer: int) -> None:
        """Say once that memory ran out for so many rows, and how many come next."""
        if self.sizes.first_out_of_memory():
            logger.warning(
                'model "%s" ran out of memory on %s with %d rows; going on with %d. '
                "Pass batch_size=%d to start there",
                *(self.sizes.model, self.where, rows, fewer, fewer),
            )

    def origin(self, error: BaseException) -> tuple[str | None, int | None]:
        """Return the worker on which `error` was raised, and its stage, if known."""
        return None, None
