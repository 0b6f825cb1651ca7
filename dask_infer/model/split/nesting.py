"""Nested values: taken apart into leaves and a structure, and put together again.

Torch's own trees know only classes that were registered in the process; this one knows
tuples, dictionaries, dataclasses and what derives from them, as models return.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
_LEAVES = (*_PLAIN, torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)


class UnknownValue(TypeError):
    """An object that is neither a container nor a plain value."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The place of a value among the leaves."""

    place: int

    @property
    def is_plain(self) -> bool:
        """Whether it is made of tuples, lists and dictionaries alone."""
        return True


@dataclasses.dataclass(frozen=True)
class Node:
    """A container, its items replaced by their structures."""

    kind: type
    keys: tuple[Any, ...]
    items: tuple[Leaf | Node, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is made of tuples, lists and dictionaries alone."""
        own = self.kind in (tuple, list, dict)
        return own and all(item.is_plain for item in self.items)


def take_apart(value: Any, leaves: list[Any]) -> Leaf | Node:
    """Append the leaves of a value, and return its structure.

    Raises
    ------
    UnknownValue
        If it is neither a tensor, number or text, nor a container of them.
    """
    kind = tuple if isinstance(value, torch.Size) else type(value)
    if isinstance(value, _LEAVES):
        leaves.append(value)
        return Leaf(len(leaves) - 1)
    keys: tuple[Any, ...] = ()
    if isinstance(value, dict):
        keys, items = tuple(value), tuple(value.values())
    elif isinstance(value, (tuple, list)):
        items = tuple(value)
    elif dataclasses.is_dataclass(value):
        keys = tuple(field.name for field in dataclasses.fields(value))
        items = tuple(getattr(value, key) for key in keys)
    else:
        raise UnknownValue(f"a {kind.__name__} is neither a tensor nor a container")
    return Node(kind, keys, tuple(take_apart(item, leaves) for item in items))


def put_together(structure: Leaf | Node, leaves: Sequence[Any]) -> Any:
    """Return the value that has this structure and these leaves."""
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
