"""The devices of this process, each made once."""

from __future__ import annotations

import threading

import torch

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
            known = _build(torch_device)
            known.prepare()
            _devices[str(torch_device)] = known
        return known


def _build(torch_device: torch.device) -> Device:
    build = {"cuda": Cuda, "mps": Mps}.get(torch_device.type, Device)
    return build(torch_device)


def _torch_device(name: str) -> torch.device:
    if name == "auto":
        name = _best_device()
    kind, _, index = name.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise PlacementError(
                f'device="{name}": this worker sees {count} CUDA devices; start the '
                'workers where there is a GPU, or pass device="auto" or "cpu"'
            )
        return torch.device("cuda", int(index or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise PlacementError(
            'device="mps": this worker has no Metal device; pass device="auto" or "cpu"'
        )
    return torch.device(kind)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
