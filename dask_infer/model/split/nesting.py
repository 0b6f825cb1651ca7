"""Nested values: taken apart into leaves and a structure, and put together again.

Torch's own trees know only classes that were registered in the process; this one knows
tuples, dictionaries, dataclasses and what derives from them, as models return.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch

_LEAVES = (
    *(type(None), bool, int, float, str, torch.dtype, torch.device),
    *(torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool),
)


class UnknownValue(TypeError):
    """An object that is neither a container nor a plain value."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A container, its items replaced by their structures."""

    kind: type
    keys: tuple[Any, ...]
    items: tuple[Structure, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is made of tuples, lists and dictionaries alone."""
        items = [item.is_plain for item in self.items if item is not None]
        return self.kind in (tuple, list, dict) and all(items)


#: None for a leaf; leaves are numbered in the order in which they stand.
Structure: TypeAlias = Node | None


def take_apart(value: Any, leaves: list[Any]) -> Structure:
    """Append the leaves of a value, and return its structure.

    Raises
    ------
    UnknownValue
        If it is neither a tensor, number or text, nor a container of them.
    """
    kind = tuple if isinstance(value, torch.Size) else type(value)
    keys: tuple[Any, ...] = ()
    if isinstance(value, _LEAVES):
        leaves.append(value)
        return None
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


def put_together(structure: Structure, leaves: Iterable[Any]) -> Any:
    """Return the value that has this structure and these leaves."""
    leaves = iter(leaves)
    if structure is None:
        return next(leaves)
    items = [put_together(item, leaves) for item in structure.items]
    kind: Any = structure.kind
    if issubclass(kind, (tuple, list)):
        return kind(*items) if hasattr(kind, "_fields") else kind(items)
    named = dict(zip(structure.keys, items, strict=True))
    is_dataclass = dataclasses.is_dataclass(structure.kind)
    if issubclass(kind, dict):  # one that is a dataclass too fills itself
        return kind(**named) if is_dataclass else kind(named)
    made = kind.__new__(kind)
    for name, item in named.items():
        object.__setattr__(made, name, item)
    return made
