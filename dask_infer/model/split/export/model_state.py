"""What a model keeps between calls: recorded before and after one, to find changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

#: What torch itself keeps in every module, and transformers once it has run one.
_KNOWN = frozenset({*vars(nn.Module()), "_output_capturing_hooks_installed"})

#: How deep objects in attributes are looked into.
_DEPTH = 6


def described(module: nn.Module) -> dict[str, Any]:
    """Return what there is to see of each attribute, parameter and buffer by path."""
    found = {}
    for path, part in module.named_modules():
        own = {name: v for name, v in vars(part).items() if name not in _KNOWN}
        for name, value in {**own, **part._parameters, **part._buffers}.items():
            found[f"{path}.{name}" if path else name] = _described(value, _DEPTH)
    return found


def reached(module: nn.Module) -> list[Any]:
    """Return what there is to see of what hooks and patched methods read and write."""
    found: list[Any] = []
    for part in module.modules():
        tables = (part._forward_pre_hooks, part._forward_hooks, vars(part))
        for function in [one for table in tables for one in table.values()]:
            if isinstance(function, (FunctionType, MethodType)):
                found += _reached(function)
    return found


def _reached(function: Any) -> Iterator[Any]:
    owner = getattr(function, "__self__", None)
    yield _attributes(owner)
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # empty
            yield _attributes(cell.cell_contents)


def _attributes(value: Any) -> Any:
    """Describe an object, of a module its own attributes as well."""
    if isinstance(value, nn.Module):
        value = {name: v for name, v in vars(value).items() if name not in _KNOWN}
    return _described(value, _DEPTH)


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return the path of an attribute that is not as it was."""
    names = (*before, *after)
    return next((name for name in names if before.get(name) != after.get(name)), None)


def _described(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return (type(value), repr(value))
    if isinstance(value, torch.Tensor):
        return (id(value), None if value.is_inference() else value._version)
    if isinstance(value, (nn.Module, type)) or callable(value) or not depth:
        return id(value)
    if isinstance(value, Mapping):
        items = value.items()
        return tuple((repr(key), _described(item, depth - 1)) for key, item in items)
    if isinstance(value, Iterable) and hasattr(value, "__len__"):
        if hasattr(value, "tobytes"):  # an array
            return (id(value), hash(value.tobytes()))
        return tuple(_described(item, depth - 1) for item in value)
    return (id(value), _described(getattr(value, "__dict__", {}), depth - 1))
