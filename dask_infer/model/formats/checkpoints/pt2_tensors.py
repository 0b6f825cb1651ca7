"""Tensors of a ``*.pt2`` archive by name, one record at a time.

torch reads the whole archive or nothing; its format has an entry for each tensor, and a
table of them beside it (torch 2.9 to 2.13). Nothing of it is run.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import torch

from dask_infer.errors import ModelLoadError

#: Tables of the archive and the folders of what they list.
_TABLES = (
    ("data/weights/model_weights_config.json", "data/weights/"),
    ("data/constants/model_constants_config.json", "data/constants/"),
)


def tensors_in(path: str, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Read those of `names` that the archive holds."""
    reader = torch._C.PyTorchFileReader(path)
    records = set(reader.get_all_records())
    wanted = set(names)
    found = {}
    for table, folder in _TABLES:
        if table not in records:
            continue
        entries = json.loads(reader.get_record(table))["config"]
        for name in wanted & entries.keys():
            found[name] = _tensor(reader, folder, entries[name], path)
    return found


def _tensor(reader: Any, folder: str, entry: dict[str, Any], path: str) -> torch.Tensor:
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    data = bytearray(reader.get_record(folder + entry["path_name"]))
    if entry["use_pickle"]:
        loaded: torch.Tensor = torch.load(
            io.BytesIO(data), map_location="cpu", weights_only=True
        )
        return loaded
    meta = entry["tensor_meta"]
    dtype = _SERIALIZE_TO_TORCH_DTYPE.get(meta["dtype"])
    if dtype is None:
        raise ModelLoadError(f"{path} holds a tensor of an unknown dtype")
    sizes = [size["as_int"] for size in meta["sizes"]]
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    strides = [stride["as_int"] for stride in meta["strides"]]
    flat = torch.frombuffer(data, dtype=dtype)
    return flat.as_strided(sizes, strides, meta["storage_offset"]["as_int"])
