"""SHA-256 of large data in chunks, on several cores, not twice of the same data.

A hash tree of two levels: as hard to forge as one SHA-256 over everything, and the same
on any number of cores.

Torch counts no version of what is written through `.data` or NumPy, so that a tensor
is as it was shows only if all of it is read again. XXH3 reads it twelve times faster
than SHA-256, and its 128 bits say which SHA-256 a chunk has that was seen before.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from concurrent.futures import ThreadPoolExecutor

import xxhash

#: Bytes of a chunk. Other threads run while one is read.
CHUNK = 4 * 2**20
#: Bytes up to which data is not worth a digest of its own.
SMALL = 16 * 2**10
#: More threads wait for the memory.
MOST_THREADS = 8
#: Chunks that are remembered, which takes about 15 MB.
MOST_KNOWN = 2**16

#: SHA-256 of chunks by their XXH3.
_known: dict[bytes, bytes] = {}
#: XXH3 is no cryptographic hash: nobody can prepare data for an unknown seed.
_seed = secrets.randbits(64)


def parallel_hash(data: bytes | memoryview) -> bytes | memoryview:
    """Return the SHA-256 of each chunk, in order; small data as it is.

    The size of the data, which the caller hashes too, says which of the two it is.
    """
    whole = memoryview(data)
    if whole.nbytes <= SMALL:
        return data
    whole = whole.cast("B")
    starts = range(0, whole.nbytes, CHUNK)
    if len(starts) == 1:
        return _sha256(whole)
    with ThreadPoolExecutor(min(MOST_THREADS, len(starts), _cores())) as threads:
        return b"".join(threads.map(lambda at: _sha256(whole[at : at + CHUNK]), starts))


def _sha256(chunk: memoryview) -> bytes:
    fast = xxhash.xxh3_128_digest(chunk, _seed)
    digest = _known.get(fast)
    if digest is None:
        digest = hashlib.sha256(chunk).digest()
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        # Another thread may write meanwhile, as training does.
        if xxhash.xxh3_128_digest(chunk, _seed) == fast:
            _known[fast] = digest
    return digest


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
