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
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library than glibc
        return False
    value = min(threshold, LARGEST)
    return bool(mallopt(M_MMAP_THRESHOLD, value) and mallopt(M_TRIM_THRESHOLD, value))
