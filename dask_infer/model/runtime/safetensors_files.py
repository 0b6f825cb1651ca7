"""Checkpoints in safetensors files, by a look at their headers.

A download that was cut off fails when the call is built, not on a hundred workers.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NoReturn

from dask_infer.errors import ModelLoadError

#: Bytes of one number by the names that safetensors headers use.
_FLOATING_WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


def safetensors_header(path: Path) -> dict[str, Any]:
    """Dtype, shape and place of each tensor by its name.

    Raises
    ------
    ModelLoadError
        If the file has less than its header says.
    """
    refuse_empty(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            damaged(path, "is not a valid safetensors file (truncated?)")
        header = parse_json(file.read(length), path)
    header.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in header.values()]
    if 8 + length + max(ends, default=0) > size:
        damaged(path, "is truncated: it is shorter than its header says")
    return dict(header)


def bytes_as(path: Path, width: int) -> int:
    """Bytes of a file's tensors where floating numbers take `width` bytes each."""
    return sum(_bytes_as(entry, width) for entry in safetensors_header(path).values())


def _bytes_as(entry: dict[str, Any], width: int) -> int:
    start, stop = entry["data_offsets"]
    stored = _FLOATING_WIDTH.get(str(entry["dtype"]))
    nbytes: int = stop - start
    return nbytes if stored is None else nbytes * width // stored


def safetensors_files(path: Path) -> list[Path]:
    """Files of a checkpoint: itself, or those that its ``*.index.json`` names.

    Raises
    ------
    ModelLoadError
        If one of them is missing.
    """
    if path.suffix != ".json":
        return [path]
    names = sorted(set(read_json(path)["weight_map"].values()))
    files = [path.parent / name for name in names]
    for file in files:
        if not file.is_file():
            raise ModelLoadError(
                f"{file} is missing, which {path.name} names; fetch or save the "
                "model again"
            )
    return files


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or raise `ModelLoadError`."""
    refuse_empty(path)
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, path: Path) -> Any:
    """Return what `data`, a part of a file, holds, or raise `ModelLoadError`."""
    try:
        return json.loads(data)
    except ValueError:
        damaged(path, "holds no JSON where it should")


def refuse_empty(path: Path) -> None:
    """Raise `ModelLoadError` where a file has no bytes."""
    if path.stat().st_size == 0:
        damaged(path, "is empty")


def damaged(path: Path, what: str) -> NoReturn:
    """Raise `ModelLoadError` for a file that is not what its name says."""
    raise ModelLoadError(f"{path} {what}; fetch or save the model again")
