"""safetensors files as one table of tensors, of which only those asked for are read.

They are mapped, so tensors that are not read take no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dask_infer.errors import ModelLoadError

Tensors = dict[str, torch.Tensor]
#: What to read; for each the names of tensors tied to it, which a file may use instead.
TensorNames = Mapping[str, tuple[str, ...]]
#: What to read of a tensor: the axis, and from where to where.
Part = tuple[int, tuple[tuple[int, int], ...]]
Parts = Mapping[str, Part]


class Checkpoint:
    """safetensors files, opened where a tensor of theirs is asked for."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for file in files:
            self._files.update(dict.fromkeys(self._handle(file).keys(), file))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors."""
        return tuple(self._files)

    def get(self, name: str, part: Part | None = None) -> torch.Tensor:
        """Return one tensor, or a part of it, mapped."""
        handle = self._handle(self._files[name])
        if part is None:
            tensor: torch.Tensor = handle.get_tensor(name)
            return tensor
        axis, ranges = part
        source, front = handle.get_slice(name), (slice(None),) * axis
        found: list[torch.Tensor] = [source[(*front, slice(*each))] for each in ranges]
        return found[0] if len(found) == 1 else torch.cat(found, axis)

    def read(self, names: TensorNames, parts: Parts) -> Tensors:
        """Return those tensors that it has under one of their names."""
        found = {}
        for name, tied in names.items():
            known = next((n for n in (name, *tied) if n in self._files), None)
            if known is not None:
                found[name] = self.get(known, parts.get(name))
        return found

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt", device="cpu")
            except (OSError, SafetensorError) as error:
                raise ModelLoadError(
                    f"{file} is no readable safetensors file: {error}"
                ) from error
        return self._open[file]
