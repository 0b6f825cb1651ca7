"""Whether files are what their names say, by a look at their headers.

Nothing is unpickled or run: a cut-off download or a wrong file fails when the call is
built, not on a hundred workers.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from dask_infer.errors import ModelLoadError

#: Numbers of the fields of ONNX's ``ModelProto``, and of the one that is the graph.
_ONNX_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_ONNX_GRAPH = 7
_VARINT, _LENGTH_DELIMITED = 0, 2


def check_zip(path: Path) -> None:
    """Raise `ModelLoadError` unless a file is a whole zip archive."""
    _refuse_empty(path)
    if not zipfile.is_zipfile(path):
        _damaged(path, "is no zip archive, as torch writes them")


def check_torch(path: Path) -> None:
    """Raise `ModelLoadError` unless a file is an archive or a pickle of torch's."""
    _refuse_empty(path)
    with path.open("rb") as file:
        is_pickle = file.read(1) == b"\x80"  # how torch wrote before its archives
    if not is_pickle:
        check_zip(path)


def check_safetensors(path: Path) -> None:
    """Raise `ModelLoadError` unless a safetensors file has all that its header says."""
    _refuse_empty(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            _damaged(path, "is no safetensors file, or cut off")
        header = _json(file.read(length), path)
    ends = [
        entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"
    ]
    if 8 + length + max(ends, default=0) > size:
        _damaged(path, "is cut off: it is shorter than its header says")


def check_onnx(path: Path) -> None:
    """Raise `ModelLoadError` unless a file is a whole ONNX model."""
    _refuse_empty(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        fields = set()
        while file.tell() < size:
            tag = _varint(file)
            fields.add(tag >> 3)
            if tag >> 3 not in _ONNX_FIELDS or tag & 7 not in (0, 2):
                _damaged(path, "is no ONNX model")
            length = _varint(file)
            if tag & 7 == _LENGTH_DELIMITED:
                file.seek(length, 1)
        if file.tell() != size or _ONNX_GRAPH not in fields:
            _damaged(path, "is no ONNX model, or cut off")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or raise `ModelLoadError`."""
    _refuse_empty(path)
    return _json(path.read_bytes(), path)


def _json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        _damaged(path, "holds no JSON where it should")


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            break
    return value


def _refuse_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        _damaged(path, "is empty")


def _damaged(path: Path, what: str) -> NoReturn:
    raise ModelLoadError(f"{path} {what}; fetch or save the model again")
