"""What a model returned for synthetic rows, and what each axis of it counts."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dask_infer.model.runtime.kept_memory import arrays_in
from dask_infer.spec import ArgumentKey

#: Counts of rows and of tokens to choose from; small models take few tokens.
_ROWS = (37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109)
_TOKENS = (11, 13, 17, 19, 23, 29, 31)


def counts_beside(sizes: Container[Any] = ()) -> tuple[tuple[int, int], ...]:
    """Return two counts of rows and of tokens that are none of some other sizes."""
    rows = [count for count in _ROWS if count not in sizes] or _ROWS
    tokens = [count for count in _TOKENS if count not in sizes] or _TOKENS
    return (rows[0], tokens[0]), (rows[-1], tokens[1])


@dataclass(frozen=True)
class Traced:
    """What a model returned for one count of rows and one of tokens."""

    #: The model's output structure, fake or meta tensors in place of tensors.
    output: Any
    #: Size of the batch axis.
    rows: int
    #: Size of the padded axis.
    tokens: int
    #: Name of the model's floating dtype.
    floating: str
    #: Arguments that have to go in as "int64", or "floating", which an example leaves
    #: open.
    dtypes: Mapping[ArgumentKey, str] = field(default_factory=dict)
    #: Optional arguments that the model does not take.
    dropped: tuple[str, ...] = ()
    #: Tensors of `output`, by `id`, that hold no row's values: their sizes follow the
    #: batch on other axes than those of the rows and tokens, or not on the first.
    uneven: frozenset[int] = frozenset()
    #: The padded axis is the output's own: sequences that were generated.
    ragged: bool = False

    def dtypes_at(self, places: Mapping[ArgumentKey, int]) -> dict[int, str]:
        """Return the dtypes that arguments must have, by place."""
        return {places[k]: dtype for k, dtype in self.dtypes.items() if k in places}


def compared(one: Traced, two: Traced) -> Traced:
    """Return one of two traces, and which of its tensors hold no row's values.

    Of an output that is a row's, the first axis counts the rows, the second may count
    the tokens, and every other has the same size both times.
    """
    leaves, others = leaves_of(one.output), leaves_of(two.output)
    pairs = list(zip(leaves, others, strict=False))
    if len(leaves) != len(others) or any(a.dim() != b.dim() for a, b in pairs):
        return one
    sizes = [list(zip(a.shape, b.shape, strict=True)) for a, b in pairs]
    same = {x for axes in sizes for x, y in axes[1:] if x == y}
    if same & {one.rows, one.tokens} and not same & {two.rows, two.tokens}:
        return compared(two, one)  # a size is one of the counts by chance
    rows, tokens = (one.rows, two.rows), (one.tokens, two.tokens)
    uneven = {
        id(leaf)
        for leaf, axes in zip(leaves, sizes, strict=True)
        if axes[:1] not in ([], [rows])
        or any(x != y for x, y in axes[2:])
        or any(x != y and (x, y) != tokens for x, y in axes[1:2])
    }
    return replace(one, uneven=frozenset(uneven))


def leaves_of(output: Any) -> list[torch.Tensor]:
    """Return the tensors of an output, those of dataclasses and the like included."""
    return [leaf for leaf in arrays_in(output) if isinstance(leaf, torch.Tensor)]
