"""Copies of a batch to the device and of its outputs back.

A partition's batches go through one `Stream` in turn::

    args, kwargs = stream.pin(args, kwargs)      ahead of time, in any thread
    args, kwargs = stream.upload(args, kwargs)   the forward may read them
    pending = stream.download(fields)            copies may start
    fields = pending()                           on the CPU

On the CPU every step is the identity. An accelerator overlaps the copies of the
neighbouring batches with the forward between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

#: The arguments of a call.
Call: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"

#: Values by name.
Fields: TypeAlias = "list[tuple[Any, Any]]"

#: Waits for the outputs of a batch and returns them on the CPU.
Pending: TypeAlias = Callable[[], Fields]


class Stream:
    """The null stream: host and device share memory."""

    #: Tensors are copied at all.
    copies: bool = False
    #: Outputs are fetched while the next forward runs. Without that they are taken at
    #: once: a model may write its next output into the same memory.
    overlaps: bool = False

    def pin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Move a batch to where `upload` copies it from without waiting."""
        return args, kwargs

    def upload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Copy a batch to the device, for the forward that follows."""
        return args, kwargs

    def download(self, fields: Fields) -> Pending:
        """Start to copy named outputs back to the CPU."""
        return lambda: fields


class BlockingStream(Stream):
    """Plain copies, for a device without streams."""

    copies = True

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def upload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Copy a batch to the device and wait."""
        call: Call = map_tensors(lambda t: t.to(self.device), (args, kwargs))
        return call

    def download(self, fields: Fields) -> Pending:
        """Copy outputs back and wait."""
        copied = map_tensors(torch.Tensor.cpu, fields)
        return lambda: copied


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
