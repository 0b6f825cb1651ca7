"""Some rows of what crosses a cut, where it is known which axis of each value is rows.

So rows of a batch that failed in a layer group are tried again from that group on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dask_infer.model.split.chain import Chain
from dask_infer.model.split.program import Step

#: Axis of the rows of each value; None for a value that has none.
Axes = Mapping[str, int | None]

#: Operators that may put rows in another order.
MOVES = frozenset(
    {
        *("argsort", "sort", "topk", "flip", "roll", "gather", "index_select"),
        *("index", "take", "scatter", "index_put", "index_add", "index_copy"),
    }
)

#: Rows and tokens by which values are compared.
COUNTS = ((7, 5), (11, 5), (11, 13))


def row_axes(chain: Chain, place: int) -> Axes | None:
    """Return the axis of rows of each value before block `place`; None if unknown.

    Inside the model rows may be in another order, which the rest of it undoes: of such
    values none is known to be of a row.
    """
    axes: dict[str, int | None] = {}
    inside = place < len(chain.blocks)
    if inside and any(map(_moves, chain.program.steps[: chain.bounds[place]])):
        return None
    for name in chain.cut_names(place):
        value = chain.program.values.get(name)
        if value is None:
            return None
        made = inside and name not in chain.program.inputs
        if made and len(value.shape) == 1 and value.dtype is torch.int64:
            return None  # a layer may return the order it put rows in
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


def _moves(step: Step) -> bool:
    return step.kind == "operator" and step.target[1].removesuffix("_") in MOVES


def take_rows(
    values: Mapping[Any, Any], axes: Axes, positions: np.ndarray
) -> dict[Any, Any]:
    """Return the values of some rows, in memory of their own."""
    chosen = torch.from_numpy(positions)
    return {
        name: value if (axis := axes[name]) is None
        else value.index_select(axis, chosen)
        for name, value in values.items()
    }  # fmt: skip


def join_rows(parts: Sequence[Mapping[Any, Any]], axes: Axes) -> dict[Any, Any]:
    """Return the values of several rows after each other as those of one batch."""
    return {
        name: value if (axis := axes[name]) is None
        else torch.cat([part[name] for part in parts], axis)
        for name, value in parts[0].items()
    }  # fmt: skip
