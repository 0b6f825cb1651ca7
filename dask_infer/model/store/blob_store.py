"""The content store: what models are pickled into, one directory a user and host.

Entries are named by their content, so they are written once and never changed. Any
number of processes use the directory at once:

- ``<key>`` is an entry, complete from the moment it has its name;
- ``<key>.<random>.tmp`` becomes one; its writer holds ``<key>.lock`` all the time, so
  one whose lock is free was left by a process that died;
- ``<key>.pin`` is locked by whoever needs the entry to stay, and exclusively by
  whoever removes it;
- ``learned`` is a directory of small files, see `replica.sizes`;
- ``<key>.fetch`` is locked by the one process of the host that asks others for it.

Entries are pickles that run as the user, so no other user may write here.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import re
import shutil
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dask_infer import config
from dask_infer.errors import ModelLoadError
from dask_infer.model.identity import pickling
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.identity.user_classes import are_current
from dask_infer.model.store.pins import FETCH, LOCK, PIN, Pin, remove
from dask_infer.model.store.store_directory import default_directory, open_private
from dask_infer.plan.units import in_bytes
from dask_infer.spec.model_spec import Blob

logger = logging.getLogger(__name__)

#: Bytes of a pickle that rides in the task instead of in the store.
INLINE = 2048

#: Directory within the store of what was learned about models; no entry.
LEARNED = "learned"
_SIDECARS = (LOCK, PIN, FETCH, ".tmp")
_KEY = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]*")

Writer = Callable[[Path], None]
Fetcher = Callable[[str, "Store"], None]

_fetcher: Fetcher | None = None


def set_fetcher(fetcher: Fetcher | None) -> None:
    """Say who brings entries that this host does not have.

    Parameters
    ----------
    fetcher
        Called with a key and the store, it must `Store.write` the entry or raise
        `ModelLoadError`. One process of a host calls it at a time for one key.
    """
    global _fetcher
    _fetcher = fetcher


class Store:
    """Entries by content key in one directory, up to a limit of bytes.

    Parameters
    ----------
    path
        The directory; created where it is missing, for this user alone.
    limit
        Bytes beyond which unpinned entries are removed, least recently
        used first; None for no limit.

    Raises
    ------
    ModelLoadError
        If the directory belongs to, or is open to, somebody else.
    """

    #: The directory.
    root: Path
    limit: int | None

    def __init__(self, path: Path, limit: int | None) -> None:
        self.root, self.limit = path, limit
        open_private(path)
        self._remove_abandoned()

    def __repr__(self) -> str:
        used = sum(size for _, size, _ in self._entries())
        limit = "no limit" if self.limit is None else in_bytes(self.limit)
        return f"<Store {self.root} {in_bytes(used)} of {limit}>"

    def path(self, key: str) -> Path:
        """Where the entry is, or would be."""
        if not _KEY.fullmatch(key) or key.endswith(_SIDECARS):
            raise ValueError(f"{key!r} is no key of the content store")
        return self.root / key

    def write(self, key: str, writer: Writer, nbytes: int = 0) -> Path:
        """Write an entry unless it is there, and return its path.

        Parameters
        ----------
        key
            Its name.
        writer
            Writes the file whose path it is given. Runs in one process of the host
            at a time; the others wait, and find the entry.
        nbytes
            Projected size, so that what is too large is refused before it is written.

        Raises
        ------
        ModelLoadError
            If the entry is larger than the limit, or the disk is full.
        """
        path = self.path(key)
        with FileLock(f"{path}{LOCK}"):
            if _touch(path):
                return path
            self._check_size(nbytes)
            self._write_new(path, writer)
        self._evict(keep=path)
        return path

    def require(self, key: str) -> Path:
        """Path of an entry that must be there, fetched from elsewhere if need be.

        Raises
        ------
        ModelLoadError
            If neither this host nor anyone it can ask has the entry.
        """
        path = self.path(key)
        if _touch(path):
            return path
        with FileLock(f"{path}{FETCH}"):
            if not _touch(path) and _fetcher is not None:
                _fetcher(key, self)
        if _touch(path):
            return path
        raise ModelLoadError(
            f"no host has the weights {key} on its disk any more; call predict() "
            "again with the model"
        )

    def pin(self, key: str) -> Pin:
        """Keep an entry, written already or soon, from being evicted by anyone."""
        return Pin(f"{self.path(key)}{PIN}")

    def _write_new(self, path: Path, writer: Writer) -> None:
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with _explain_full_disk(self.root):
                writer(temporary)
            self._check_size(temporary.stat().st_size)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _check_size(self, nbytes: int) -> None:
        if self.limit is not None and nbytes > self.limit:
            raise ModelLoadError(
                f"the model takes {in_bytes(nbytes)}, more than the content store in "
                f"{self.root} may hold ({in_bytes(self.limit)}); raise "
                "infer.store.limit"
            )

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield when each entry was last used, its size and its path."""
        for entry in os.scandir(self.root):
            if entry.name != LEARNED and not entry.name.endswith(_SIDECARS):
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    yield status.st_mtime, status.st_size, Path(entry.path)

    def _evict(self, keep: Path) -> None:
        if self.limit is None:
            return
        entries = sorted(self._entries())
        used = sum(size for _, size, _ in entries)
        for last_used, size, path in entries:
            if used <= self.limit:
                return
            if path != keep and remove(path, last_used):
                freed = in_bytes(size)
                logger.info("evicted %s (%s) from %s", path.name, freed, self.root)
                used -= size

    def _remove_abandoned(self) -> None:
        for temporary in self.root.glob("*.tmp"):
            key = temporary.name.rsplit(".", 2)[0]
            # A writer that lives holds the lock of its entry.
            with contextlib.suppress(Timeout), FileLock(self.root / f"{key}{LOCK}", 0):
                temporary.unlink(missing_ok=True)


def _touch(path: Path) -> bool:
    """Mark an entry as used now; False where it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def _explain_full_disk(root: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
        )
        # torch.save hides the errno of its own writes.
        if not full and "PytorchStreamWriter failed writing" not in str(error):
            raise
        free = in_bytes(shutil.disk_usage(root).free)
        raise ModelLoadError(
            f"no space for the model in {root} ({free} free); make room there, or set "
            "infer.store.path to a larger disk"
        ) from error


_stores: dict[tuple[Path, int | None], Store] = {}


def default_store() -> Store:
    """Return the store that the configuration names."""
    configured = config.get("store.path")
    place = Path(configured).expanduser() if configured else default_directory()
    key = (place.absolute(), config.get_bytes("store.limit"))
    store = _stores.get(key)
    if store is None or not store.root.is_dir():
        store = _stores[key] = Store(*key)
    return store


# Blobs

#: Objects of earlier calls, by content key: what dry runs of their pickles found.
MOST_DRY_RUNS = 256
_dry_runs: OrderedDict[str, tuple[int, bytes | None, dict[str, Any]]] = OrderedDict()


class PendingBlob:
    """An object that workers will read: pickled dry at once, written when asked.

    Parameters
    ----------
    obj
        Anything that cloudpickle takes, torch modules and estimators included; it is
        neither changed nor copied.
    key
        Its content key, if it is known.
    subject
        What errors call it.

    Raises
    ------
    ModelLoadError
        If it holds what cannot be pickled; names that.
    """

    #: Names the entry, or holds the pickle.
    blob: Blob
    #: Bytes of the pickle, arrays and tensors included.
    nbytes: int

    def __init__(
        self, obj: object, key: str | None = None, subject: str = "the model"
    ) -> None:
        self._dry_run = functools.cache(lambda: pickling.dry_run(obj, subject))
        self._obj = obj
        key = key or content_key(obj)
        # What has a known key would be found to be the same.
        known = _dry_runs.pop(key, None)
        if known is None or not are_current(known[2]):
            found = self._dry_run()
            known = found.nbytes, self._inline(), found.classes
        self.nbytes, self.blob = known[0], Blob(key, known[1])
        _dry_runs[key] = known
        if len(_dry_runs) > MOST_DRY_RUNS:
            _dry_runs.popitem(last=False)

    def _inline(self) -> bytes | None:
        found = self._dry_run()
        if found.nbytes > INLINE:
            return None
        data = pickling.to_bytes(self._obj, found)
        return data if len(data) <= INLINE else None

    def write(self, store: Store | None = None) -> Blob:
        """Write the entry if there must be one; it is pinned while the blob lives."""
        if self.blob.data is None:
            write_pinned(self.blob, self._write, store, self.nbytes)
        return self.blob

    def _write(self, path: Path) -> None:
        pickling.to_file(self._obj, path, self._dry_run())


def write_pinned(
    blob: Blob, writer: Writer, store: Store | None = None, nbytes: int = 0
) -> Path:
    """Write the entry of a blob unless it is there, and pin it while the blob lives.

    Parameters and errors are those of `Store.write`.
    """
    store = store or default_store()
    weakref.finalize(blob, store.pin(blob.key).release)
    return store.write(blob.key, writer, nbytes)


def read_blob(blob: Blob, store: Store | None = None) -> Any:
    """Object of a blob; arrays and tensors are mapped, tensors on the CPU.

    Raises
    ------
    ModelLoadError
        If its entry is nowhere to be found, or damaged. What the pickle itself raises
        (a module that this process lacks) is passed on.
    """
    if blob.data is not None:
        return pickling.from_bytes(blob.data)
    store = store or default_store()
    with store.pin(blob.key):
        return pickling.from_file(store.require(blob.key))
