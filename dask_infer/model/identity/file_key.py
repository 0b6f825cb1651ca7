"""Files and directories by their content: path, size, time of change and header."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from dask_infer.errors import ModelLoadError
from dask_infer.model.identity.content_key import content_key

#: Bytes at either end of a file that count as its header.
HEADER = 4096


def existing_path(given: str, missing: str) -> Path:
    """Return the real path of what the user names.

    Parameters
    ----------
    given
        A path; ``~`` is the home directory.
    missing
        How the error begins: ``"there is no model"``.

    Raises
    ------
    ModelLoadError
        If nothing is there.
    """
    path = Path(os.path.expanduser(given))
    if path.exists():
        return Path(os.path.realpath(path))
    hint = "check the path"
    if "://" in given:
        hint = "download it to a path that client and workers can read"
    elif given.count("/") <= 1 and not Path(given).suffix:
        hint = (
            "what is on the Hugging Face hub must be downloaded first: "
            "huggingface_hub.snapshot_download(name) returns its directory"
        )
    raise ModelLoadError(f"{missing} at {given!r}; {hint}")


def file_key(kind: object, root: Path, files: Iterable[Path]) -> str:
    """Return the content key of the model at `root`, which is in these files."""
    found = [
        (os.path.relpath(file, root), *_fingerprint(file))
        for file in dict.fromkeys(files)
    ]
    return content_key((kind, str(root), found))


def _fingerprint(path: Path) -> tuple[int, int, str]:
    """Size, time of change, and digest of both ends of a file."""
    status = path.stat()
    with path.open("rb") as file:
        head = file.read(HEADER)
        file.seek(max(0, status.st_size - HEADER))
        tail = file.read(HEADER)
    return status.st_size, status.st_mtime_ns, hashlib.sha256(head + tail).hexdigest()
