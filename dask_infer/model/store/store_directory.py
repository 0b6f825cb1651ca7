"""The directory of the content store: the user's own, or refused."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from dask_infer.errors import ModelLoadError


def open_private(path: Path) -> None:
    """Create the directory, or check that it is the user's alone.

    Raises
    ------
    ModelLoadError
        If somebody else could write models there; names ``infer.store.path``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
    except OSError as error:
        raise _refuse(path, f"cannot be created ({error.strerror})") from error
    if not hasattr(os, "getuid"):
        return
    for status in (os.lstat(path), os.stat(path)):  # a link and where it leads
        if status.st_uid != os.getuid():
            raise _refuse(path, "belongs to another user, who could plant models there")
    if not stat.S_ISDIR(status.st_mode):
        raise _refuse(path, "is no directory")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise _refuse(path, f'is open to other users (run "chmod 700 {path}")')


def _refuse(path: Path, why: str) -> ModelLoadError:
    return ModelLoadError(
        f"the content store {path} {why}; set infer.store.path to a directory of your "
        "own"
    )


def default_directory() -> Path:
    """Return the user's cache directory, or one below the temporary directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = Path(cache, "dask-infer")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir(), f"dask-infer-{user}")
