"""Most bytes that resident models may take on a device."""

from __future__ import annotations

from dask_infer import config
from dask_infer.device.device import Device
from dask_infer.replica.worker_place import Place


def models_limit(device: Device, place: Place) -> int | None:
    """Most bytes of resident models on a device, or None for no limit."""
    own = device.memory_limit()
    if own is None:
        return place.replica_limit()
    configured = config.get_bytes("replica.memory-limit")
    return own if configured is None else min(own, configured)


def raise_limit(device: Device, place: Place) -> str:
    """Say whose limit it is, and how to have more."""
    if device.memory_limit() is None:
        return (
            f"worker {place.worker}: raise infer.replica.memory-limit or the worker's "
            "memory_limit"
        )
    return f"{device} of worker {place.worker}: use a device with more memory"
