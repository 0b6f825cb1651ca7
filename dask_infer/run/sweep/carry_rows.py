"""Some rows of what crosses a cut, where the axis of rows of each value is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dask_infer.model.split.chain import Chain

#: Axis of the rows of each value; None for a value that has none.
Axes = Mapping[str, int | None]

#: Rows and tokens by which values are compared.
COUNTS = ((7, 5), (11, 5), (11, 13))


def row_axes(chain: Chain, place: int) -> Axes | None:
    """Return the axis of rows of each value before block `place`; None if unknown."""
    axes: dict[str, int | None] = {}
    for name in chain.cut_names(place):
        value = chain.program.values.get(name)
        if value is None:
            return None
        sizes = [value.sizes(rows, tokens) for rows, tokens in COUNTS]
        changing = [
            axis for axis, found in enumerate(zip(*sizes, strict=True))
            if found[0] != found[1]
        ]  # fmt: skip
        if not changing:
            axes[name] = None
            continue
        axis, *others = changing
        found = tuple(size[axis] for size in sizes)
        # A number of rows, or rows times something, is not cut but computed.
        if value.dtype is None or others or found != tuple(rows for rows, _ in COUNTS):
            return None
        axes[name] = axis
    return axes


def take_rows(values: Mapping[str, Any], axes: Axes, rows: slice) -> dict[str, Any]:
    """Return the values of some rows, in memory of their own."""
    count = rows.stop - rows.start

    def taken(value: torch.Tensor, axis: int | None) -> torch.Tensor:
        return value if axis is None else value.narrow(axis, rows.start, count).clone()

    return {name: taken(value, axes[name]) for name, value in values.items()}
