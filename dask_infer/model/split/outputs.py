"""The structure of a model's output: taken apart where it is traced, and put together.

Torch's own trees know only classes that were registered in the process; this one knows
tuples, dictionaries, dataclasses and what derives from them, as models return.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch


class UnknownOutput(TypeError):
    """The model returns an object that cannot be taken apart."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The place of a value among the leaves."""

    place: int


@dataclasses.dataclass(frozen=True)
class Node:
    """A container, its items replaced by their structures."""

    kind: type
    keys: tuple[Any, ...]
    items: tuple[Any, ...]


def take_apart(output: Any, leaves: list[Any]) -> Leaf | Node:
    """Append the leaves of an output, and return its structure.

    Raises
    ------
    UnknownOutput
        If it holds what is no tensor, number, text or container of them.
    """
    kind = type(output)
    if output is None or isinstance(output, (torch.Tensor, bool, int, float, str)):
        leaves.append(output)
        return Leaf(len(leaves) - 1)
    traced = (torch.SymInt, torch.SymFloat, torch.SymBool, torch.fx.Proxy)
    if isinstance(output, traced):
        leaves.append(output)
        return Leaf(len(leaves) - 1)
    keys: tuple[Any, ...] = ()
    if isinstance(output, dict):
        keys, items = tuple(output), tuple(output.values())
    elif isinstance(output, (tuple, list)):
        items = tuple(output)
    elif dataclasses.is_dataclass(output):
        keys = tuple(field.name for field in dataclasses.fields(output))
        items = tuple(getattr(output, key) for key in keys)
    else:
        raise UnknownOutput(f"it returns a {kind.__name__}, which is no tensor")
    return Node(kind, keys, tuple(take_apart(item, leaves) for item in items))


def count(structure: Leaf | Node) -> int:
    """Return how many leaves a structure has."""
    if isinstance(structure, Leaf):
        return 1
    return sum(count(item) for item in structure.items)


def put_together(structure: Leaf | Node, leaves: Sequence[Any]) -> Any:
    """Return the output that has this structure and these leaves."""
    if isinstance(structure, Leaf):
        return leaves[structure.place]
    items = [put_together(item, leaves) for item in structure.items]
    kind, keys = structure.kind, structure.keys
    if issubclass(kind, (tuple, list)):
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    named = dict(zip(keys, items, strict=True))
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, named)
    dictionary: Any = kind
    return dictionary(named)


def _dataclass(kind: Any, named: dict[str, Any]) -> Any:
    """Return a dataclass, those that are dictionaries too made by their constructor."""
    if issubclass(kind, dict):
        return kind(**named)
    made = kind.__new__(kind)
    for name, item in named.items():
        object.__setattr__(made, name, item)
    return made
