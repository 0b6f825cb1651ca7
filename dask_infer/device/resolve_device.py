"""The devices of this process, each made once."""

from __future__ import annotations

import threading

import torch

from dask_infer.device.allocator import keep_freed_blocks
from dask_infer.device.cuda import Cuda
from dask_infer.device.device import Device
from dask_infer.device.mps import Mps
from dask_infer.errors import PlacementError

_devices: dict[str, Device] = {}
_devices_lock = threading.Lock()


def resolve_device(name: str) -> Device:
    """Return the one `Device` of this process for ``"auto"``, ``"cpu"``, ...

    Raises
    ------
    PlacementError
        If this process has no such device.
    """
    torch_device = _torch_device(name)
    with _devices_lock:
        known = _devices.get(str(torch_device))
        if known is None:
            if torch_device.type == "cpu":
                keep_freed_blocks()
            build = {"cuda": Cuda, "mps": Mps}.get(torch_device.type, Device)
            known = _devices[str(torch_device)] = build(torch_device)
        return known


def _torch_device(name: str) -> torch.device:
    metal = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if metal else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise PlacementError(
                f'device="{name}": this worker sees {count} CUDA devices; start the '
                'workers where there is a GPU, or pass device="auto" or "cpu"'
            )
        return torch.device("cuda", int(index or 0))
    if kind == "mps" and not metal:
        raise PlacementError(
            'device="mps": this worker has no Metal device; pass device="auto" or "cpu"'
        )
    return torch.device(kind)
