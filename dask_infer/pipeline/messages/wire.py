"""Values as messages between workers, for tensors of every dtype and without copies.

Dask's own serialisation fails for bfloat16 and float8 (distributed 2026.8.0), so
tensors travel as dtype, shape and raw bytes. All else goes as Dask sends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from distributed.protocol.serialize import to_serialize

from dask_infer.model.runtime.footprint import as_bytes

#: Sent in the header itself.
PLAIN = (type(None), bool, int, float, str)

Message = dict[str, Any]


def pack(values: Mapping[Any, Any]) -> Message:
    """Return values by name as one message; tensors must be on the CPU."""
    header: list[tuple[Any, ...]] = []
    frames: list[Any] = []
    for name, value in values.items():
        if isinstance(value, torch.Tensor) and value.layout is torch.strided:
            header.append((name, "tensor", _dtype_name(value), tuple(value.shape)))
            frames.append(to_serialize(as_bytes(value)))
        elif type(value) in PLAIN:
            header.append((name, "plain", value))
        else:
            header.append((name, "object"))
            frames.append(to_serialize(value))
    return {"header": header, "frames": frames}


def unpack(message: Message) -> dict[Any, Any]:
    """Return the values of a message; tensors are in memory of their own."""
    frames = iter(message["frames"])
    values: dict[Any, Any] = {}
    for name, kind, *about in message["header"]:
        if kind == "tensor":
            values[name] = _tensor(next(frames), about[0], tuple(about[1]))
        else:
            values[name] = about[0] if kind == "plain" else next(frames)
    return values


def again(message: Message) -> Message:
    """Return a message that was received, to be sent on."""
    frames = message["frames"]
    return {**message, "frames": [to_serialize(frame) for frame in frames]}


def copied(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the values for a receiver in this process, which may write into them."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _tensor(
    raw: np.ndarray[Any, Any], dtype_name: str, shape: tuple[int, ...]
) -> torch.Tensor:
    dtype = getattr(torch, dtype_name)
    if not raw.size:
        return torch.empty(shape, dtype=dtype)
    # Buffers of a message start anywhere, and kernels read whole items.
    misaligned = raw.ctypes.data % max(1, dtype.itemsize)
    if misaligned or not raw.flags.writeable:
        raw = raw.copy()
    return torch.from_numpy(raw).view(dtype).reshape(shape)
