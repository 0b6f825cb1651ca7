"""Which items of an axis each shard holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True)
class AxisParts:
    """The division of an axis: of each of its chunks, as of all of it where it has one.

    A layer may compute several things at once (queries, keys and values), of each of
    which a shard needs its part.
    """

    #: For each chunk the first item of each shard, and the end; sizes may differ.
    chunks: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        return " ".join(
            "|".join(str(stop - start) for start, stop in pairwise(chunk))
            for chunk in self.chunks
        )

    @classmethod
    def even(
        cls, size: int, shards: int, unit: int = 1, ends: Sequence[int] = ()
    ) -> AxisParts:
        """Divide an axis so that sizes differ by a unit at most.

        The items of a `unit` stay together, as those of a head do; at `ends` one chunk
        ends and the next one begins.
        """
        chunks = []
        for start, stop in pairwise((0, *ends, size)):
            units = (stop - start) // unit
            bounds = [start + units * s // shards * unit for s in range(shards)]
            chunks.append((*bounds, stop))
        return cls(tuple(chunks))

    @property
    def size(self) -> int:
        """Items of the whole axis."""
        return self.chunks[-1][-1]

    def ranges(self, shard: int) -> tuple[tuple[int, int], ...]:
        """Return the first item and the end of what a shard holds of each chunk."""
        return tuple((chunk[shard], chunk[shard + 1]) for chunk in self.chunks)

    def count(self, shard: int) -> int:
        """Return how many items a shard holds."""
        return sum(stop - start for start, stop in self.ranges(shard))

    def part_shape(
        self, shape: tuple[int, ...], dim: int, shard: int
    ) -> tuple[int, ...]:
        """Return the shape of a shard's part of a tensor."""
        return (*shape[:dim], self.count(shard), *shape[dim + 1 :])

    def take(self, tensor: torch.Tensor, dim: int, shard: int) -> torch.Tensor:
        """Return a shard's part of a whole tensor; a view where it has one chunk."""
        parts = [tensor.narrow(dim, a, b - a) for a, b in self.ranges(shard)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    def join(self, parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        """Return the whole tensor of the parts of all shards."""
        if len(self.chunks) == 1:
            return torch.cat(list(parts), dim)
        sizes = [[b - a for a, b in self.ranges(shard)] for shard in range(len(parts))]
        found = [part.split(each, dim) for part, each in zip(parts, sizes, strict=True)]
        return torch.cat(
            [each[c] for c in range(len(self.chunks)) for each in found], dim
        )

    def scaled(self, times: int, by: int) -> AxisParts | None:
        """Return the division of an axis of other items; None where they are torn."""
        bounds = [bound * times for chunk in self.chunks for bound in chunk]
        if any(bound % by for bound in bounds):
            return None
        chunks = (tuple(b * times // by for b in chunk) for chunk in self.chunks)
        return AxisParts(tuple(chunks))

    def chunk(
        self, start: int, stop: int, shard: int
    ) -> tuple[slice, AxisParts] | None:
        """Return where a shard has its part of some chunks, and their own division.

        None where other items are asked for than those of whole chunks.
        """
        edges = [chunk[0] for chunk in self.chunks] + [self.size]
        if start not in edges or stop not in edges or start >= stop:
            return None
        first, last = edges.index(start), edges.index(stop)
        counts = [b - a for a, b in self.ranges(shard)]
        place = slice(sum(counts[:first]), sum(counts[:last]))
        moved = (tuple(b - start for b in c) for c in self.chunks[first:last])
        return place, AxisParts(tuple(moved))
