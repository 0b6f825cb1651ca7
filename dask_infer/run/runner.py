"""Where the batches of a partition run, as the feeder sees it.

A runner belongs to one partition and is used by its thread alone. It is the replica of
this process, or leads to workers that hold one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.sizing.hill_climber import FixedSize
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.spec import Inputs
from dask_infer.spec.model_spec import Interface
from dask_infer.spec.token_rules import TokenRules


class Abandoned(BaseException):
    """Nobody wants the partition any more: no failure, and no row's fault."""


class Pending(Protocol):
    """Outputs of a batch on their way back."""

    def wait(self) -> Iterable[tuple[Any, Any]]:
        """Return the output's named fields on the CPU, after `postprocess`.

        Raises what failed: `StepFailed` where the step is known, `DeadlineExceeded`
        where it took too long; anything else is taken as the forward's.
        """


class Runner(Protocol):
    """A way through one replica, wherever it lives."""

    @property
    def interface(self) -> Interface:
        """What the model wants to be called with."""

    @property
    def floating(self) -> torch.dtype | None:
        """Dtype of floating inputs; None for torch's default."""

    @property
    def token_rules(self) -> TokenRules:
        """How the called method takes tokens."""

    @property
    def inputs(self) -> Inputs:
        """The job's inputs, stacked integers as the model reads them."""

    @property
    def dtypes(self) -> Sequence[tuple[str, str]]:
        """Names and dtypes of arguments that the model casts; none where unknown."""

    @property
    def window(self) -> int:
        """Most batches sent whose outputs have not been waited for.

        1 where outputs must be taken before the next forward, 2 where copies overlap
        with it, more for a chain of stages.
        """

    @property
    def microbatch(self) -> int | None:
        """Rows of a batch that were planned for a chain of stages; None for others."""

    @property
    def where(self) -> str:
        """Device and worker, for messages."""

    def batch_size(
        self, signature: Any, bytes_per_row: float, bound: int | None
    ) -> FixedSize:
        """Return the policy for batches of this signature, shared by all partitions."""

    def token_budget(self, signature: Any, bound: int | None) -> TokenBudget:
        """Return the policy for padded batches, shared by all partitions."""

    def send(self, batch: Batch) -> Pending:
        """Start the forward of a batch; may block until there is room.

        Outputs come back in the order of sending. Raises as `Pending.wait` does.
        """

    def clock(self) -> float:
        """Seconds by which batches are compared; asked by the partition's thread."""

    def count(self, rows: int) -> None:
        """Add rows whose outputs have come back."""

    def discard(self) -> None:
        """Leave a replica that may be stuck; the next batch goes to a fresh one."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether `error` says that memory ran out there, which is no row's fault."""

    def first_out_of_memory(self) -> bool:
        """Whether it is the first time that memory ran out for this replica."""

    def release_memory(self) -> None:
        """Give freed blocks back, after memory ran out."""
