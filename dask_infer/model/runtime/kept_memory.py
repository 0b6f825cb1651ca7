"""Memory that a model returns and keeps: the next forward may write into it.

A module that fills one buffer again and again is right in a loop, where each output is
read before the next call. Here outputs are read later, and other threads call it too:
the calls of such a model wait for each other, and its outputs are copied at once. Which
model is one is seen at its first call. That one runs alone: beside it another could put
a second buffer in the place of the one that was returned, and none would be found.
"""

from __future__ import annotations

import copy
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

#: Most objects that are looked at for memory that a model keeps, the nearest first.
MOST_OBJECTS = 10_000
_NO_PARTS = (type, types.ModuleType)


class KeptMemory:
    """The calls of one model, from any thread."""

    def __init__(self) -> None:
        #: Whether the model keeps what it returns; None before the first call.
        self.keeps: bool | None = None
        self._one_call = threading.Lock()

    def run(self, target: Any, call: Callable[[], Any]) -> Any:
        """Return ``call()``, whose memory is not written to afterwards."""
        if self.keeps is False:
            return call()
        with self._one_call:
            if self.keeps is None:
                output = call()
                self.keeps = keeps_memory(target, output)
                return copied(output) if self.keeps else output
            if self.keeps:
                return copied(call())
        return call()


def keeps_memory(target: Any, output: Any) -> bool:
    """Whether `target` holds memory that is part of `output`."""
    returned = {place for leaf in arrays_in(output) if (place := _memory(leaf))}
    return bool(returned) and any(_memory(leaf) in returned for leaf in _state(target))


def copied(output: Any) -> Any:
    """Return `output` with all tensors and arrays in memory of their own."""
    return pytree.tree_map(_copied, output)


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.clone()
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if isinstance(leaf, type) or not hasattr(leaf, "__dict__"):
        return leaf
    again = copy.copy(leaf)
    vars(again).update({name: copied(value) for name, value in vars(leaf).items()})
    return again


def arrays_in(value: Any) -> Iterator[Any]:
    """Tensors and arrays in nested containers, and in the attributes of objects."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor | np.ndarray):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            yield from pytree.tree_leaves(list(vars(leaf).values()))


def _state(target: Any) -> Iterator[Any]:
    """Yield what the model holds: attributes, cells and globals, its parts' as well."""
    owners, seen = deque([getattr(target, "__self__", target)]), set[int]()
    while owners and len(seen) < MOST_OBJECTS:
        owner = owners.popleft()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        values = list(getattr(owner, "__dict__", {}).values())
        cells = getattr(owner, "__closure__", None) or ()
        values += [cell.cell_contents for cell in cells if cell != types.CellType()]
        if isinstance(owner, types.FunctionType):
            found = owner.__globals__
            values += [found[name] for name in owner.__code__.co_names if name in found]
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, torch.Tensor | np.ndarray):
                yield leaf
            elif hasattr(leaf, "__dict__") and not isinstance(leaf, _NO_PARTS):
                owners.append(leaf)


def _memory(leaf: Any) -> int | None:
    """Where the whole block begins that a tensor or an array is part of."""
    if isinstance(leaf, torch.Tensor):
        if leaf.layout is not torch.strided or leaf.is_meta:
            return None
        return leaf.untyped_storage().data_ptr() or None
    if not isinstance(leaf, np.ndarray):
        return None
    while isinstance(leaf.base, np.ndarray):
        leaf = leaf.base
    base = leaf.base
    return _memory(base) if isinstance(base, torch.Tensor) else leaf.ctypes.data
