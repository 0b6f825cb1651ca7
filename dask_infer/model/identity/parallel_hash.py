"""SHA-256 of the pieces of large data, made on several cores, in place of the data.

A hash tree of two levels: as hard to forge as one SHA-256 over everything, and the same
on any number of cores.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

#: Bytes of a piece. hashlib lets other threads run while it reads one.
PIECE = 4 * 2**20
#: More threads wait for the memory.
MOST_THREADS = 8


def parallel_hash(data: bytes | memoryview) -> bytes | memoryview:
    """Return data of one piece as it is, else the SHA-256 of each piece, in order.

    The two are told apart by the size of the data, which the caller hashes, too.
    """
    whole = memoryview(data)
    if whole.nbytes <= PIECE:
        return data
    whole = whole.cast("B")
    starts = range(0, whole.nbytes, PIECE)
    with ThreadPoolExecutor(min(MOST_THREADS, len(starts), _cores())) as threads:
        return b"".join(threads.map(lambda at: _sha256(whole[at : at + PIECE]), starts))


def _sha256(piece: memoryview) -> bytes:
    return hashlib.sha256(piece).digest()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
