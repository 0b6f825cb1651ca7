"""A CUDA device: one compute stream, and copies overlapped with it.

Batch *i + 1* is copied to the device and batch *i - 1* back from it while batch *i*
computes. Three streams, ordered by events only::

    copy-in      upload i+1  --event-->
    compute                      forward i+1  --event-->
    copy-out                                      download i+1  --event--> pending()

The caching allocator may hand a freed block to another stream while a copy still
reads it; `record_stream` informs it who reads what.
"""

from __future__ import annotations

from typing import Any

import torch

from dask_infer.device.device import Accelerator
from dask_infer.device.stream import Call, Fields, Pending, Stream, map_tensors


class Cuda(Accelerator):
    """One CUDA device of this process."""

    @property
    def kind(self) -> str:
        """Name of the card."""
        return torch.cuda.get_device_name(self.torch_device)

    def __init__(self, torch_device: torch.device) -> None:
        super().__init__(torch_device)
        with torch.cuda.device(torch_device):
            self.copy_in = torch.cuda.Stream()
            self.copy_out = torch.cuda.Stream()
            self.compute = torch.cuda.default_stream()

    def stream(self) -> Stream:
        """Return a channel whose copies overlap with compute."""
        return CudaStream(self)

    def memory_limit(self) -> int:
        """Three quarters of the device: activations need the rest."""
        total = torch.cuda.get_device_properties(self.torch_device).total_memory
        return int(0.75 * total)

    def free_bytes(self) -> int:
        """Free device memory, and what torch's allocator has cached unused."""
        free, _ = torch.cuda.mem_get_info(self.torch_device)
        cached = torch.cuda.memory_reserved(self.torch_device)
        used = torch.cuda.memory_allocated(self.torch_device)
        return int(free + cached - used)

    def release_memory(self) -> None:
        """Return the allocator's unused blocks to the device."""
        super().release_memory()
        torch.cuda.empty_cache()


class CudaStream(Stream):
    """The copies of one partition's batches to a CUDA device and back."""

    copies = overlaps = True

    def __init__(self, cuda: Cuda) -> None:
        self.device = cuda.torch_device
        self.copy_in, self.copy_out = cuda.copy_in, cuda.copy_out
        self.compute = cuda.compute

    def pin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Copy a batch into pinned memory."""

        def pinned(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if tensor.is_cuda else tensor.pin_memory()

        with torch.cuda.device(self.device):
            call: Call = map_tensors(pinned, (args, kwargs))
        return call

    def upload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Copy a batch on the copy-in stream, and have the compute stream wait."""
        args, kwargs = self.pin(args, kwargs)

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(self.device, non_blocking=True)

        def read(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.is_cuda:
                tensor.record_stream(self.compute)
            return tensor

        with torch.cuda.device(self.device), torch.cuda.stream(self.copy_in):
            call = map_tensors(copied, (args, kwargs))
            event = self.copy_in.record_event()
        self.compute.wait_event(event)
        return map_tensors(read, call)  # type: ignore[no-any-return]

    def download(self, fields: Fields) -> Pending:
        """Start the copies back into pinned memory on the copy-out stream."""
        computed = self.compute.record_event()
        with torch.cuda.device(self.device), torch.cuda.stream(self.copy_out):
            self.copy_out.wait_event(computed)
            copied = map_tensors(self._to_pinned, fields)
            event = self.copy_out.record_event()
        # A model may reuse its output's memory: the next forward comes after the copy.
        self.compute.wait_event(event)

        def wait() -> Fields:
            event.synchronize()
            return copied  # type: ignore[no-any-return]

        return wait

    def _to_pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_cuda:
            return tensor
        tensor = tensor.detach()
        target = torch.empty(
            tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True
        )
        target.copy_(tensor, non_blocking=True)
        tensor.record_stream(self.copy_out)
        return target
