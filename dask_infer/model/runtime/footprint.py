"""Dtypes and bytes of the tensors that a module holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Floating dtypes a model can be run in, by the names that `dtype=` takes.
FLOATING = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

#: Linear layers in whole numbers of 8 bits, all else in float32.
INT8 = "int8"


def parse_dtype(name: str | None) -> torch.dtype | None:
    """Torch dtype of a floating dtype's name; float32 for "int8".

    Raises
    ------
    ValueError
        If it is no floating dtype that models run in.
    """
    if name is None:
        return None
    if name == INT8:
        return torch.float32
    if name not in FLOATING:
        known = ", ".join(f'"{known}"' for known in (*FLOATING, INT8))
        raise ValueError(f"dtype={name!r} is no floating dtype; pass one of {known}")
    return FLOATING[name]


def tensors_of(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Every parameter and buffer that has data, shared objects once.

    Of one that shards divide its part.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if not torch.nn.parameter.is_lazy(tensor):
            yield getattr(tensor, "part", tensor)


def with_attributes(made: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return `made` with the attributes that code has set on the tensor it replaces."""
    vars(made).update(vars(tensor))
    return made


def as_bytes(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return the bytes of a tensor on the CPU; a view where it is contiguous."""
    own = tensor.detach().contiguous().resolve_conj().resolve_neg()
    # A column of one row is contiguous whatever its stride, which `view` refuses.
    flat = own.as_strided((own.numel(),), (1,))
    array: np.ndarray[Any, Any] = flat.view(torch.uint8).numpy()
    return array


def tensor_bytes(module: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; those that share memory count once."""
    each = {(_address(t), t.numel() * t.element_size()) for t in tensors_of(module)}
    return sum(nbytes for _, nbytes in each)


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # sparse and wrapped tensors have no single address
        return id(tensor)


def floating_dtype(module: torch.nn.Module) -> torch.dtype | None:
    """Dtype of the first floating parameter, else None."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return None


def mapped_share(module: torch.nn.Module) -> float:
    """Share of the tensors' bytes that lie in mapped files; 1.0 where unknowable."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return 1.0
    mapped = sorted(_range(line) for line in lines if line.count("/"))
    total = inside = 0
    for tensor in tensors_of(module):
        nbytes = tensor.numel() * tensor.element_size()
        total += nbytes
        address = _address(tensor)
        if any(low <= address < high for low, high in mapped):
            inside += nbytes
    return inside / total if total else 1.0


def _range(line: str) -> tuple[int, int]:
    low, high = line.split(None, 1)[0].split("-")
    return int(low, 16), int(high, 16)
