"""A call of a layer in a stage, and a check that it returns what was learned of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from dask_infer.errors import OutputError
from dask_infer.model.split.nesting import (
    Structure,
    UnknownValue,
    put_together,
    take_apart,
)
from dask_infer.model.split.shards import DividedTensor

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
class Arguments:
    """The arguments of a call: what is no tensor and no size is part of it."""

    structure: Structure
    #: An `Input`, or the value itself.
    leaves: tuple[Any, ...]

    @classmethod
    def of(
        cls, args: Any, kwargs: Any
    ) -> tuple[Arguments, list[torch.Tensor], list[Any]]:
        """Return arguments of an export, and their tensors and sizes; flags are 0, 1.

        Raises
        ------
        UnknownValue
            If there is an argument that no stage can be given.
        """
        leaves: list[Any] = []
        structure = take_apart((args, kwargs), leaves)
        if structure is None or not structure.is_plain:
            # Other classes may have attributes, which layers read or write.
            raise UnknownValue("a container of a class of its own")
        tensors, sizes = list[torch.Tensor](), list[Any]()
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                leaves[place] = Input(torch.Tensor, len(tensors))
                tensors.append(leaf)
            elif isinstance(leaf, (torch.SymInt, torch.SymBool)):
                leaves[place] = Input(type(leaf), len(sizes))
                is_flag = isinstance(leaf, torch.SymBool)
                sizes.append(torch.sym_ite(leaf, 1, 0) if is_flag else leaf)
            elif isinstance(leaf, torch.SymFloat):
                raise UnknownValue("a fraction of a size is no size")
        return cls(structure, tuple(leaves)), tensors, sizes

    def put(self, tensors: Sequence[torch.Tensor], sizes: Sequence[int]) -> Any:
        """Return the positional arguments and the keywords."""

        def leaf(value: Any) -> Any:
            if not isinstance(value, Input):
                return value
            given = tensors if value.kind is torch.Tensor else sizes
            found = given[value.place]
            return bool(found) if value.kind is torch.SymBool else found

        return put_together(self.structure, map(leaf, self.leaves))


@dataclass(frozen=True)
class Signature:
    """What a call of a layer returns."""

    structure: Structure
    #: `NewTensor`, an `Input` that is returned as it is, the `Rule` of a number that
    #: follows from sizes, or the value.
    leaves: tuple[Any, ...]
    #: Whether tensors that it returns may be views of one memory, or of arguments.
    shares: bool

    @property
    def made(self) -> list[NewTensor]:
        """What the operator returns."""
        return [leaf for leaf in self.leaves if isinstance(leaf, NewTensor)]


class CalledLayer(nn.Module):
    """Calls a layer, and checks that it returns what was learned of it.

    A layer may do otherwise at sizes that it was not run at when the model was split:
    crop to 512 tokens, or return None. The code after it was exported for what was
    learned, so anything else would give wrong values.

    Parameters
    ----------
    path, layer
        The layer, which the stage holds under that path.
    has_glue
        Whether code of the model's own was exported for the sizes that it returns.
        Without it only the structure must be as learned.
    """

    def __init__(
        self,
        path: str,
        layer: nn.Module,
        arguments: Arguments,
        signature: Signature,
        has_glue: bool,
    ) -> None:
        super().__init__()
        self._path, self._arguments, self._signature = path, arguments, signature
        self._has_glue = has_glue
        self._layer = (layer,)  # not under a second name

    def forward(self, tensors: list[Any], sizes: list[int]) -> list[Any]:
        """Return the tensors that the layer makes."""
        args, kwargs = self._arguments.put(tensors, sizes)
        leaves: list[Any] = []
        structure = take_apart(self._layer[0](*args, **kwargs), leaves)
        learned, known = self._signature, known_sizes(tensors, sizes)
        if structure == learned.structure and all(
            self._is_as_learned(leaf, expected, tensors, known)
            for leaf, expected in zip(leaves, learned.leaves, strict=True)
        ):
            made = (leaves[one.place] for one in learned.made)
            # Code around layers gets what shards have of them together.
            return [x.whole() if isinstance(x, DividedTensor) else x for x in made]
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
        if not isinstance(learned, NewTensor):
            learned = size_by(learned, known)
            return type(leaf) is type(learned) and bool(leaf == learned)
        return isinstance(leaf, torch.Tensor) and (
            not self._has_glue
            or (leaf.dtype == learned.dtype and _fits(leaf, learned.shape, known))
        )


def _fits(tensor: torch.Tensor, rules: tuple[Rule, ...], known: list[int]) -> bool:
    return tensor.dim() == len(rules) and all(
        size_by(rule, known) in (size, None)
        for size, rule in zip(tensor.shape, rules, strict=True)
    )
