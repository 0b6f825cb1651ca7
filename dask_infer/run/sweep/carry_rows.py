"""Some rows of what crosses a cut, where the axis of rows of each value is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dask_infer.model.split.chain import Chain

#: Axis of the rows of each value; None for a value that has none.
Axes = Mapping[str, int | None]


def row_axes(chain: Chain, place: int) -> Axes | None:
    """Return the axis of rows of each value before block `place`; None if unknown."""
    axes: dict[str, int | None] = {}
    for name in chain.cut_names(place):
        value = chain.values.get(name)
        if value is None:
            return None
        counted = [size for size in value.shape if "rows" in str(size)]
        # A number of rows, or rows times something, is not cut but computed.
        if counted and (value.dtype is None or counted != ["rows"]):
            return None
        axes[name] = value.shape.index("rows") if counted else None
    return axes


def take_rows(values: Mapping[str, Any], axes: Axes, rows: slice) -> dict[str, Any]:
    """Return the values of some rows, in memory of their own."""
    count = rows.stop - rows.start

    def taken(value: torch.Tensor, axis: int | None) -> torch.Tensor:
        return value if axis is None else value.narrow(axis, rows.start, count).clone()

    return {name: taken(value, axes[name]) for name, value in values.items()}
