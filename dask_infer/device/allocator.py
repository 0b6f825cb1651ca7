"""Malloc kept from giving a forward's memory back after every batch.

Dask's nanny sets ``MALLOC_TRIM_THRESHOLD_=65536``, which also freezes glibc's mmap
threshold at 128 KB: every activation above it is mapped, zeroed by the kernel and
unmapped again. 8 transformer layers of width 256 on one thread took 37.3 ms and 6,000
page faults a forward with it, 27.7 ms and 2 faults without (distributed 2026.8.0,
glibc 2.36). The environment is read when a process starts, so the running worker
changes it through ``mallopt``.
"""

from __future__ import annotations

import ctypes
import functools
import sys

from dask_infer import config

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
#: glibc takes a C int.
LARGEST = 2**31 - 1


@functools.cache
def keep_freed_blocks() -> bool:
    """Let malloc keep freed blocks below ``infer.replica.malloc-threshold``.

    Once per process; the price is memory that the process keeps. Returns whether
    anything was set.
    """
    threshold = config.get_bytes("replica.malloc-threshold")
    if not threshold or not sys.platform.startswith("linux"):
        return False
    libc = _glibc()
    if libc is None:
        return False
    value = min(threshold, LARGEST)
    set_mmap = libc.mallopt(M_MMAP_THRESHOLD, value)
    return bool(set_mmap and libc.mallopt(M_TRIM_THRESHOLD, value))


def give_back_freed_blocks() -> None:
    """Return what malloc keeps to the system, once; after a load, not between batches.

    Reading and converting weights leaves blocks as large as the model behind.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library where it is glibc."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if libc.mallopt and libc.malloc_trim else None
    except (OSError, AttributeError):
        return None
