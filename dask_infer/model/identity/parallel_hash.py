"""SHA-256 of large data in chunks, on several cores.

A hash tree of two levels: as hard to forge as one SHA-256 over everything, and the same
on any number of cores.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

#: Bytes of a chunk. hashlib lets other threads run while it reads one.
CHUNK = 4 * 2**20
#: More threads wait for the memory.
MOST_THREADS = 8


def parallel_hash(data: bytes | memoryview) -> bytes | memoryview:
    """Return the SHA-256 of each chunk, in order; data of one chunk as it is.

    The size of the data, which the caller hashes too, says which of the two it is.
    """
    whole = memoryview(data)
    if whole.nbytes <= CHUNK:
        return data
    whole = whole.cast("B")
    starts = range(0, whole.nbytes, CHUNK)
    with ThreadPoolExecutor(min(MOST_THREADS, len(starts), _cores())) as threads:
        return b"".join(threads.map(lambda at: _sha256(whole[at : at + CHUNK]), starts))


def _sha256(chunk: memoryview) -> bytes:
    return hashlib.sha256(chunk).digest()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
