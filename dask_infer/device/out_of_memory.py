"""What torch and the host say when memory ran out, on any device."""

from __future__ import annotations

import torch

#: Parts of messages. In order: torch's CPU allocator, all accelerators, cuBLAS.
MESSAGES = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, which is no row's fault: smaller batches may fit."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(part in text for part in MESSAGES)
