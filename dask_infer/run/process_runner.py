"""What runners have in common whose forwards run in this process."""

from __future__ import annotations

import logging

from dask_infer.batch.sizing.hill_climber import HillClimber
from dask_infer.batch.sizing.token_budget import TokenBudget
from dask_infer.device.device import Device
from dask_infer.replica.worker_place import Place
from dask_infer.run.runner import Runner
from dask_infer.spec import Job

logger = logging.getLogger(__name__)


class ProcessRunner(Runner):
    """A runner whose forwards run in this process; subclasses set these attributes."""

    job: Job
    place: Place
    device: Device
    #: Policies that this partition is batched by, and the user's most rows.
    _size: HillClimber | None = None
    _budget: TokenBudget | None = None
    _bound: int | None = None

    @property
    def where(self) -> str:
        """Device and worker."""
        return f"{self.device} of worker {self.place.worker}"

    def batch_size(
        self, signature: object, bytes_per_row: float, bound: int | None
    ) -> HillClimber:
        """Return the policy for batches of this signature."""
        self._bound = bound
        self._size = super().batch_size(signature, bytes_per_row, bound)
        return self._size

    def token_budget(self, signature: object, bound: int | None) -> TokenBudget:
        """Return the policy for padded batches of this signature."""
        self._budget = super().token_budget(signature, bound)
        return self._budget

    def free_bytes(self) -> int:
        """Bytes that a forward may take; on the CPU no more than the worker may."""
        free, own = self.device.free_bytes(), self.place.free_bytes()
        on_host = self.device.torch_device.type == "cpu"
        return min(free, own) if on_host and own is not None else free

    def release_memory(self) -> None:
        """Give the device's freed blocks back."""
        self.device.release_memory()

    def policy(self, width: int) -> HillClimber | None:
        """Return the policy for rows padded to `width`; 0 where they are not padded."""
        return self._budget if width else self._size

    def shrink(self, rows: int, width: int) -> bool:
        """Inform the policy of rows for which memory ran out; False without one."""
        policy = self.policy(width)
        if policy is None:
            return False
        size = policy.on_out_of_memory(rows * (width or 1))
        if self.sizes.first_out_of_memory():
            logger.warning(
                'model "%s" ran out of memory on %s with %d rows; going on with %d %s',
                self.job.model.name, self.where, rows, size, policy.unit,
            )  # fmt: skip
        return True
