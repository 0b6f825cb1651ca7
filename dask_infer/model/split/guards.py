"""Guards: the sizes of inputs for which an export follows the model's code.

Where code asks `if ids.shape[1] < 16`, ``torch.export`` follows the branch of the
made-up call, and notes the question (torch 2.13: `_guards_code`, lines of Python). An
export is wrong where the answer is another one, so chains ask again for each batch.
"""

from __future__ import annotations

import ast
import inspect
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Key = int | str

_BINARY: Mapping[type, str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.FloorDiv: "floordiv",
    ast.Div: "truediv",
    ast.Mod: "mod",
    ast.Pow: "pow",
}
_COMPARED: Mapping[type, str] = {
    ast.Lt: "lt",
    ast.LtE: "le",
    ast.Gt: "gt",
    ast.GtE: "ge",
    ast.Eq: "eq",
    ast.NotEq: "ne",
}
_CALLED: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in _BINARY.values()},
    **{name: getattr(operator, name) for name in _COMPARED.values()},
    "neg": operator.neg,
    "not": operator.not_,
    "and": lambda *values: all(values),
    "or": lambda *values: any(values),
    "min": min,
    "max": max,
}


class _NotOfSizes(Exception):
    """A line that is about something else than sizes of inputs."""


@dataclass(frozen=True)
class Guard:
    """A condition on the sizes of inputs."""

    #: As people read it: `ids.shape[1] < 16`.
    text: str
    #: A number, or a tuple of an operator's name and its operands.
    expression: Any

    def holds(self, given: Mapping[Key, Any]) -> bool:
        """Tell whether a call's arguments meet it."""
        try:
            return bool(_value(self.expression, given))
        except ZeroDivisionError:  # a batch without rows: nothing can be wrong
            return True

    def sizes(self, given: Mapping[Key, Any]) -> str:
        """Return the sizes that it speaks of, as `ids.shape[1] is 20`."""
        found = dict.fromkeys(_sizes(self.expression))
        return ", ".join(f"{size[3]} is {_value(size, given)}" for size in found)


def guards_of(
    lines: Iterable[str], forward: Callable[..., Any], keys: Iterable[Key]
) -> tuple[Guard, ...]:
    """Return the guards that speak of sizes of a call's arguments.

    Parameters
    ----------
    lines
        What torch noted.
    forward
        Function whose parameters they name.
    keys
        Places and keywords of the call's tensors.
    """
    keys = list(keys)
    places = [key for key in keys if isinstance(key, int)]
    keywords = {key: key for key in keys if isinstance(key, str)}
    named = inspect.signature(forward).bind_partial(*places, **keywords).arguments
    found = {}
    for line in lines:
        try:
            tree = _read(ast.parse(line, mode="eval").body, named)
        except (_NotOfSizes, SyntaxError):
            continue
        if any(_sizes(tree)):
            found[_shown(line)] = tree
    return tuple(Guard(text, tree) for text, tree in found.items())


def _shown(line: str) -> str:
    return re.sub(r"L\['(\w+)'\]", r"\1", line).replace(".size()", ".shape")


def _read(node: ast.expr, named: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float()):
            return node.value
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=of, attr="size"), args=[]),
            slice=ast.Constant(value=int(axis)),
        ):
            return ("size", _argument(of, named), axis, _shown(ast.unparse(node)))
        case ast.UnaryOp(op=ast.USub()):
            return ("neg", _read(node.operand, named))
        case ast.UnaryOp(op=ast.Not()):
            return ("not", _read(node.operand, named))
        case ast.BinOp() if type(node.op) in _BINARY:
            sides = (_read(node.left, named), _read(node.right, named))
            return (_BINARY[type(node.op)], *sides)
        case ast.BoolOp():
            name = "and" if isinstance(node.op, ast.And) else "or"
            return (name, *(_read(value, named) for value in node.values))
        case ast.Call(func=ast.Name(id=("min" | "max") as name), keywords=[]):
            return (name, *(_read(value, named) for value in node.args))
        case ast.Compare():
            return _compared(node, named)
    raise _NotOfSizes


def _compared(node: ast.Compare, named: Mapping[str, Any]) -> Any:
    sides = [_read(side, named) for side in (node.left, *node.comparators)]
    if not all(type(op) in _COMPARED for op in node.ops):
        raise _NotOfSizes
    pairs = zip(node.ops, sides, sides[1:], strict=False)
    return ("and", *((_COMPARED[type(op)], left, right) for op, left, right in pairs))


def _argument(node: ast.expr, named: Mapping[str, Any]) -> Key:
    """Return the place or keyword that ``L['ids']`` or ``L['args'][0]`` speaks of."""
    steps: list[Any] = []
    while isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        steps.insert(0, node.slice.value)
        node = node.value
    found: Any = named
    for step in steps:
        is_known = isinstance(found, Mapping) and step in found
        is_item = isinstance(found, tuple) and isinstance(step, int)
        if not (is_known or (is_item and step < len(found))):
            raise _NotOfSizes
        found = found[step]
    if not isinstance(found, int | str):
        raise _NotOfSizes
    return found


def _value(tree: Any, given: Mapping[Key, Any]) -> Any:
    if not isinstance(tree, tuple):
        return tree
    if tree[0] == "size":
        return given[tree[1]].shape[tree[2]]
    return _CALLED[tree[0]](*[_value(operand, given) for operand in tree[1:]])


def _sizes(tree: Any) -> Sequence[tuple[Any, ...]]:
    if not isinstance(tree, tuple):
        return []
    if tree[0] == "size":
        return [tree]
    return [size for operand in tree[1:] for size in _sizes(operand)]
