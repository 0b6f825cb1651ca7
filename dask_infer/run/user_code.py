"""The user's functions of a job, unpickled once in a process."""

from __future__ import annotations

from dask_infer.model.store.blob_store import read_blob
from dask_infer.spec import Blob, Code

_codes: dict[str, Code] = {}


def read_code(blob: Blob) -> Code:
    """Return what the user gave besides the model."""
    code = _codes.get(blob.key)
    if code is None:
        if len(_codes) >= 64:
            _codes.clear()
        code = _codes[blob.key] = read_blob(blob)
    return code
