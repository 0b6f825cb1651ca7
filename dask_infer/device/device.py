"""A place where forwards run: the CPU, or one accelerator of this process.

`Device` is the CPU and the null object of every accelerator call, so that code and
tests above this room are the same with and without one.
"""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from dask_infer.device.allocator import give_back_freed_blocks
from dask_infer.device.stream import Stream


def use_cpu_threads(threads: int) -> None:
    """Let forwards of the calling thread use so many cores.

    The nanny sets ``OMP_NUM_THREADS=1`` for every worker, and torch's setting belongs
    to the calling thread (torch 2.13, OpenMP).
    """
    # get is cheap, set rebuilds OpenMP's team: only where it changes something.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class Device:
    """The CPU: as many forwards at once as worker threads, and nothing to copy."""

    #: Where tensors of the model live.
    torch_device: torch.device
    #: Forwards wait for each other.
    one_at_a_time: bool = False
    #: Seconds by which the forwards of the calling thread are compared. On the CPU the
    #: thread's own: on a busy machine forwards of 50 ms are all interrupted, and by the
    #: wall a forward's fixed cost, 30 padded tokens for MiniLM, came out at 11 to 93.
    clock: Callable[[], float] = staticmethod(time.thread_time)

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device

    def __repr__(self) -> str:
        return f"<Device {self}>"

    def __str__(self) -> str:
        return str(self.torch_device)

    @property
    def kind(self) -> str:
        """What the device is: two of one kind are equally fast."""
        return self.torch_device.type

    def exclusive(self) -> contextlib.AbstractContextManager[Any]:
        """Hold the device for one forward; on the CPU there is room for all.

        Taken by the thread that waits for the forward, so that a forward that never
        ends is left behind without the device.
        """
        return contextlib.nullcontext()

    def enter_forward(self, threads: int) -> None:
        """Prepare the thread that runs a forward."""
        use_cpu_threads(threads)

    def stream(self) -> Stream:
        """Return a fresh channel for the batches of one partition."""
        return Stream()

    def memory_limit(self) -> int | None:
        """Bytes of models that fit the device; None where the worker's limit rules."""
        return None

    def free_bytes(self) -> int:
        """Bytes that a forward may take now."""
        return int(psutil.virtual_memory().available)

    def release_memory(self) -> None:
        """Give freed blocks back, after an out-of-memory error.

        Reference cycles of the failed forward, too, may hold what it allocated.
        """
        gc.collect()
        give_back_freed_blocks()


class Accelerator(Device):
    """A device with memory of its own: one forward at a time, copies beside it."""

    one_at_a_time = True
    #: Wall time: the thread only waits.
    clock = staticmethod(time.perf_counter)

    def __init__(self, torch_device: torch.device) -> None:
        super().__init__(torch_device)
        self._one_forward = threading.Lock()

    def exclusive(self) -> contextlib.AbstractContextManager[Any]:
        """Hold the device while a forward is launched."""
        return self._one_forward

    def enter_forward(self, threads: int) -> None:
        """Nothing: the CPU's threads do not matter here."""
