"""What a call of a layer returns, as it was learned, and a check that it still does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from dask_infer.errors import OutputError
from dask_infer.model.split.nesting import Structure, take_apart

#: A size of what a layer returns: fixed, the product of the arguments' sizes at these
#: places, or None where nothing is known of it.
Rule: TypeAlias = int | tuple[int, ...] | None


def size_by(rule: Rule, known: Sequence[Any]) -> Any:
    """Return a size, from the arguments' sizes; None where nothing is known of it."""
    if isinstance(rule, tuple):
        return math.prod(known[place] for place in rule)
    return rule


def known_sizes(tensors: Sequence[Any], sizes: Sequence[Any]) -> list[Any]:
    """Return the arguments' sizes: those of tensors, and numbers."""
    return [*(size for tensor in tensors for size in tensor.shape), *sizes]


@dataclass(frozen=True)
class Input:
    """The place of an argument among the tensors, or the sizes, of a call."""

    kind: type
    place: int


@dataclass(frozen=True)
class NewTensor:
    """A tensor that the layer makes, and the operator returns."""

    #: Place among the leaves of what the layer returns.
    place: int
    dtype: torch.dtype
    shape: tuple[Rule, ...]


@dataclass(frozen=True)
class Signature:
    """What a call of a layer returns."""

    structure: Structure
    #: `NewTensor`, an `Input` that is returned as it is, the `Rule` of a number that
    #: follows from sizes, or the value.
    leaves: tuple[Any, ...]
    #: What the operator returns.
    made: tuple[NewTensor, ...]
    #: Whether it returns views of what it holds or is given.
    shares: bool


class ReturnedLeaves(nn.Module):
    """Takes apart what a layer returned, and checks that it is what was learned of it.

    A layer may do otherwise at sizes that it was not run at when the model was split:
    crop to 512 tokens, or return None. The code after it was exported for what was
    learned, so anything else would give wrong values.

    Parameters
    ----------
    path, signature
        The layer, and what was learned of it.
    has_glue
        Whether code of the model's own was exported for the sizes that it returns.
    """

    def __init__(self, path: str, signature: Signature, has_glue: bool) -> None:
        super().__init__()
        self._path, self._signature, self._has_glue = path, signature, has_glue

    def forward(self, output: Any, tensors: list[Any], sizes: list[int]) -> list[Any]:
        """Return the leaves of an output; `tensors` and `sizes` are the arguments'."""
        leaves: list[Any] = []
        structure = take_apart(output, leaves)
        known = known_sizes(tensors, sizes)
        if structure == self._signature.structure and all(
            self._is_as_learned(leaf, learned, tensors, known)
            for leaf, learned in zip(leaves, self._signature.leaves, strict=True)
        ):
            return leaves
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise OutputError(
            f'the layer "{self._path}", called with {shapes}, returns something else '
            "than at the sizes at which the model was split (another shape, dtype, "
            'number or structure): use parallel="data", or batches of other sizes'
        )

    def _is_as_learned(
        self, leaf: Any, learned: Any, tensors: list[Any], known: list[int]
    ) -> bool:
        if isinstance(learned, Input):
            return leaf is tensors[learned.place]
        if isinstance(learned, NewTensor):
            return isinstance(leaf, torch.Tensor) and (
                not self._has_glue
                or (leaf.dtype == learned.dtype and _fits(leaf, learned.shape, known))
            )
        learned = size_by(learned, known)
        return type(leaf) is type(learned) and bool(leaf == learned)


def _fits(tensor: torch.Tensor, rules: tuple[Rule, ...], known: list[int]) -> bool:
    return tensor.dim() == len(rules) and all(
        size_by(rule, known) in (size, None)
        for size, rule in zip(tensor.shape, rules, strict=True)
    )
