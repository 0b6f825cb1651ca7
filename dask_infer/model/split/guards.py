"""What an exported graph takes for granted of the sizes of its inputs.

Code that branches on a size is followed down one branch, and torch notes the condition.
A condition that some batch would break is a reason to refuse: the graph would go on,
and be wrong. Conditions on texts' lengths alone are kept, and held against each batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

#: How torch writes the size of an input: L['x'].size()[0], L['args'][0].size()[1].
_SIZE = re.compile(r"L((?:\['?\w+'?\])+)\.size\(\)\[(\d+)\]")

#: How sizes are kept in a condition.
_PLACE = re.compile(r"\{(\w+):(\d+)\}")

#: What is left of a condition once its sizes are numbers.
_ARITHMETIC = re.compile(r"(?:min|max|and|or|not|[\d\s()+*/%<>=!,-])+")

#: Batches that a condition is tried on; 1 is taken as any other size.
_ROWS = (2, 3, 4, 5, 6, 7, 8, 11, 13, 16, 32, 64, 100, 127, 128, 1000, 4096)
_TOKENS = (2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 17, 31, 32)


class SizeBranch(Exception):
    """The code takes another path for other sizes."""


def conditions(guards: Iterable[str], inputs: Iterable[str]) -> tuple[str, ...]:
    """Return the conditions that a batch may break, sizes as ``{name:axis}``.

    The rows of all inputs are equal, and the lengths of its texts mostly.

    Raises
    ------
    SizeBranch
        If batches that users may well have would break one.
    """
    known = set(inputs)
    found = []
    for guard in guards:
        condition = _SIZE.sub(lambda m: f"{{{_name(m[1])}:{m[2]}}}", guard)
        sizes = _PLACE.findall(condition)
        if not sizes:
            continue  # of constants, which are part of the chain
        if not {name for name, _ in sizes} <= known or not _is_arithmetic(condition):
            raise SizeBranch(_shown(condition))
        axes = {int(axis) for _, axis in sizes}
        tokens = _TOKENS if axes - {0} else (2,)
        rows = _ROWS if 0 in axes else (2,)
        for count in rows:
            for length in tokens:
                given = {0: count}
                if not _holds(condition, lambda n, a, g=given, t=length: g.get(a, t)):
                    raise SizeBranch(_shown(condition))
        if axes - {0}:
            found.append(condition)
    return tuple(found)


def broken(wanted: Iterable[str], carry: Mapping[str, Any]) -> str | None:
    """Return the first condition that a batch breaks, in words."""
    for condition in wanted:
        if not _holds(condition, lambda name, axis: _size(carry, name, axis)):
            return _shown(condition)
    return None


def _name(path: str) -> str:
    return "_".join(re.findall(r"\w+", path))


def _is_arithmetic(condition: str) -> bool:
    bare = _PLACE.sub("2", condition)
    return _ARITHMETIC.fullmatch(bare) is not None and "**" not in bare


def _size(carry: Mapping[str, Any], name: str, axis: int) -> int:
    value = carry.get(name)
    return max(value.shape[axis], 2) if isinstance(value, torch.Tensor) else 2


def _holds(condition: str, size: Any) -> bool:
    text = _PLACE.sub(lambda m: str(size(m[1], int(m[2]))), condition)
    try:
        # Digits, operators, min and max: _is_arithmetic.
        return bool(eval(text, {"__builtins__": {}, "min": min, "max": max}))
    except ZeroDivisionError:
        return True


def _shown(condition: str) -> str:
    words = {"0": "rows", "1": "tokens"}
    return _PLACE.sub(lambda m: f"{m[1]}.{words.get(m[2], f'axis {m[2]}')}", condition)
