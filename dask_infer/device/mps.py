"""Apple's Metal device: memory shared with the CPU, so copies need no streams."""

from __future__ import annotations

import torch

from dask_infer.device.device import Accelerator
from dask_infer.device.stream import BlockingStream, Stream


class Mps(Accelerator):
    """The Metal device of this process."""

    def stream(self) -> Stream:
        """Return a channel of plain copies."""
        return BlockingStream(self.torch_device)

    def memory_limit(self) -> int:
        """Three quarters of what Metal recommends: activations need the rest."""
        return int(0.75 * torch.mps.recommended_max_memory())

    def free_bytes(self) -> int:
        """Return what Metal recommends, less what is taken."""
        limit = torch.mps.recommended_max_memory()
        return int(limit - torch.mps.driver_allocated_memory())

    def release_memory(self) -> None:
        """Return the allocator's unused blocks."""
        super().release_memory()
        torch.mps.empty_cache()
