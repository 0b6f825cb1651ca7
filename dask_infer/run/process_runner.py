"""What runners have in common whose forwards run in this process."""

from __future__ import annotations

from dask_infer.batch.sizing.hill_climber import HillClimber
from dask_infer.device.device import Device
from dask_infer.replica.worker_place import Place
from dask_infer.run.runner import Runner
from dask_infer.spec import Job


class ProcessRunner(Runner):
    """A runner whose forwards run in this process; subclasses set these attributes."""

    job: Job
    place: Place
    device: Device

    @property
    def where(self) -> str:
        """Device and worker."""
        return f"{self.device} of worker {self.place.worker}"

    def free_bytes(self) -> int:
        """Bytes that a forward may take; on the CPU no more than the worker may."""
        free, own = self.device.free_bytes(), self.place.free_bytes()
        on_host = self.device.torch_device.type == "cpu"
        return min(free, own) if on_host and own is not None else free

    def release_memory(self) -> None:
        """Give the device's freed blocks back."""
        self.device.release_memory()

    def policy(self, rows: int, width: int) -> tuple[HillClimber, int]:
        """Return the policy of rows, padded to `width` if any, and their size there."""
        if width and self._budget is not None:
            return self._budget, rows * width
        return self._size, rows

    def shrink(self, rows: int, width: int) -> None:
        """Inform the policy of rows for which memory ran out."""
        policy, size = self.policy(rows, width)
        self.warn_of_memory(rows, policy.on_out_of_memory(size) * rows // size)
