"""The way of a batch to the device and of its outputs back.

A partition's batches go through one `Stream` in turn::

    staged = stream.upload(args, kwargs)     copies may start
    args, kwargs = stream.enter(staged)      the forward may read them
    pending = stream.download(tensors)       copies may start
    tensors = pending.wait()                 ready on the CPU

On the CPU every step is the identity. An accelerator overlaps the copies of the
neighbouring batches with the forward between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch


class Staged(NamedTuple):
    """A batch on its way to the device."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    #: What must have happened before the forward; None on the CPU.
    event: Any = None
    #: Pinned sources, kept alive until the copies are done.
    sources: tuple[Any, ...] = ()


class Pending:
    """Outputs on their way back; on the CPU they are there already."""

    def __init__(self, fields: list[tuple[Any, Any]]) -> None:
        self._fields = fields

    def wait(self) -> list[tuple[Any, Any]]:
        """Return the outputs on the CPU."""
        return self._fields


class Stream:
    """The null stream: host and device share memory."""

    #: Outputs are fetched while the next forward runs. Without that they are taken at
    #: once: a model may write its next output into the same memory.
    overlaps: bool = False

    def upload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
        """Start to copy a batch to the device."""
        return Staged(args, kwargs)

    def enter(self, staged: Staged) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make a staged batch readable by the forward that follows."""
        return staged.args, staged.kwargs

    def download(self, fields: list[tuple[Any, Any]]) -> Pending:
        """Start to copy named outputs back to the CPU."""
        return Pending(fields)


class BlockingStream(Stream):
    """Plain copies, for a device without streams."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def upload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Staged:
        """Copy a batch to the device and wait."""
        move = self._to_device
        return Staged(map_tensors(move, args), map_tensors(move, kwargs))

    def download(self, fields: list[tuple[Any, Any]]) -> Pending:
        """Copy outputs back and wait."""
        return Pending(map_tensors(lambda t: t.cpu(), fields))

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)


def map_tensors(f: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Apply `f` to every tensor in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return f(value)
    if isinstance(value, Mapping):
        return {k: map_tensors(f, v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(f, v) for v in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(f, v) for v in value)
    return value
