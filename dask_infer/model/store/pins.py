"""Pins: an entry of the content store stays while any process needs it.

Locks on a file beside the entry, which the system drops with the process that had them.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: recent entries are not evicted instead
    fcntl = None  # type: ignore[assignment]

#: Ends of the names of files beside an entry.
LOCK, PIN, FETCH = ".lock", ".pin", ".fetch"
#: Seconds after its last use that an entry stays where there are no locks.
RECENT = 3600.0


class Pin(contextlib.AbstractContextManager["Pin"]):
    """Keeps an entry from being evicted, until released or garbage collected."""

    def __init__(self, path: str) -> None:
        self._shared: _SharedLock | None = _SharedLock.of(path)

    def release(self) -> None:
        """Unpin the entry; a second call does nothing."""
        self._shared = None

    def __exit__(self, *error: object) -> None:
        self.release()


_living: weakref.WeakValueDictionary[str, _SharedLock] = weakref.WeakValueDictionary()


class _SharedLock:
    """One shared file lock for all pins of an entry in this process.

    It ends with the last reference: a finalizer that the garbage collector runs could
    not take a lock safely.
    """

    @classmethod
    def of(cls, path: str) -> _SharedLock:
        shared = _living.get(path)
        if shared is None:  # two threads may each open one, which does no harm
            shared = _living[path] = cls(path)
        return shared

    def __init__(self, path: str) -> None:
        descriptor = _lock(path, exclusive=False)
        if descriptor is not None:
            # Closed, never unlocked: a forked child shares the lock of its parent.
            weakref.finalize(self, os.close, descriptor)


def _lock(path: str, exclusive: bool) -> int | None:
    """Open and lock a sidecar; None where this platform or file system cannot.

    1. a remover locks the file, 2. a reader opens it and waits, 3. the remover unlinks
    it: the reader's lock would be on a file without a name, so it opens a new one.
    """
    if fcntl is None:
        return None
    how = fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def remove(path: Path, last_used: float) -> bool:
    """Remove an entry unless a process has pinned it."""
    try:
        descriptor = _lock(f"{path}{PIN}", exclusive=True)
    except BlockingIOError:
        return False
    if descriptor is None and time.time() - last_used < RECENT:
        return False
    try:
        for end in ("", LOCK, FETCH, PIN):
            with contextlib.suppress(OSError):
                os.unlink(f"{path}{end}")
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return not path.exists()
