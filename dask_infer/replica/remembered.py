"""What a host has learned, in small files beside its content store.

Hosts learn each for themselves: their cores and memory differ. A file is a hint and no
more: one that cannot be read or written is ignored, one that is old is learned anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dask_infer import config
from dask_infer.errors import InferError
from dask_infer.model.store.blob_store import LEARNED, default_store

#: Files that a host keeps, the latest; each has less than 4 KB.
KEPT = 4096


def remember(key: str, state: Mapping[str, Any]) -> None:
    """Store what was learned; the last writer wins."""
    if config.get_seconds("batch.remember") is None:
        return
    with contextlib.suppress(OSError, InferError):
        path = _path(key)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            _remove_oldest(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(state, file)
        os.replace(temporary, path)


def recall(key: str) -> dict[str, Any] | None:
    """Return what was learned, unless that is long ago or cannot be read."""
    lasts = config.get_seconds("batch.remember")
    if lasts is None:
        return None
    try:
        path = _path(key)
        if time.time() - path.stat().st_mtime > lasts:
            return None
        state = json.loads(path.read_text())
    except (OSError, ValueError, InferError):
        return None
    return state if isinstance(state, dict) else None


def _path(key: str) -> Path:
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return default_store().root / LEARNED / f"{name}.json"


def _remove_oldest(directory: Path) -> None:
    """Make room for one more file."""
    entries = [entry for entry in os.scandir(directory) if entry.is_file()]
    if len(entries) < KEPT:
        return
    entries.sort(key=lambda entry: entry.stat().st_mtime)
    for entry in entries[: len(entries) - KEPT * 3 // 4]:
        Path(entry.path).unlink(missing_ok=True)
