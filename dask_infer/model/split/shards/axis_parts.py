"""Which items of an axis each shard holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True)
class AxisParts:
    """The division of an axis: the first item of each shard, and the end.

    Sizes may differ, and be 0.
    """

    bounds: tuple[int, ...]

    def __str__(self) -> str:
        return "|".join(str(stop - start) for start, stop in pairwise(self.bounds))

    @classmethod
    def even(cls, size: int, shards: int) -> AxisParts:
        """Divide an axis so that the sizes differ by one at most."""
        return cls(tuple(size * shard // shards for shard in range(shards + 1)))

    @property
    def size(self) -> int:
        """Items of the whole axis."""
        return self.bounds[-1]

    def range(self, shard: int) -> tuple[int, int]:
        """Return the first item of a shard, and the end."""
        return self.bounds[shard], self.bounds[shard + 1]

    def part_shape(
        self, shape: tuple[int, ...], dim: int, shard: int
    ) -> tuple[int, ...]:
        """Return the shape of a shard's part of a tensor."""
        start, stop = self.range(shard)
        return (*shape[:dim], stop - start, *shape[dim + 1 :])

    def take(self, tensor: torch.Tensor, dim: int, shard: int) -> torch.Tensor:
        """Return a shard's part of a whole tensor, a view."""
        start, stop = self.range(shard)
        return tensor.narrow(dim, start, stop - start)

    def join(self, parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        """Return the whole tensor of the parts of all shards."""
        return torch.cat(list(parts), dim)
