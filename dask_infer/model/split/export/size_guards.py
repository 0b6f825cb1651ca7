"""Guards: the sizes of inputs for which an export follows the model's code.

Where code asks `if ids.shape[1] < 16`, ``torch.export`` follows the branch of the
example, and notes the question (torch 2.13: `_guards_code`, lines of Python). An export
is wrong where the answer is another one, so chains ask again for each batch.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dask_infer.spec import ArgumentKey

#: What a guard may consist of beside sizes; nothing else is ever evaluated.
_ALLOWED = (
    ast.Expression,
    ast.Constant,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.Name,
    ast.Load,
    ast.Call,
)


@dataclass(frozen=True)
class Guard:
    """A condition on the sizes of inputs."""

    #: As people read it: `ids.shape[1] < 16`.
    text: str
    #: The same with the names of `axes`.
    expression: str
    #: Argument, axis and text of each size, by the name it has in the expression.
    axes: Mapping[str, tuple[ArgumentKey, int, str]]

    def holds(self, given: Mapping[ArgumentKey, Any]) -> bool:
        """Return whether a call's arguments meet it."""
        names = {"__builtins__": {}, "min": min, "max": max}
        try:
            return bool(eval(self.expression, {**names, **self._sizes(given)}))
        except ZeroDivisionError:  # a batch without rows: nothing can be wrong
            return True

    def sizes(self, given: Mapping[ArgumentKey, Any]) -> str:
        """Return the sizes that it speaks of, as `ids.shape[1] is 20`."""
        sizes = self._sizes(given)
        return ", ".join(f"{t} is {sizes[n]}" for n, (_, _, t) in self.axes.items())

    def _sizes(self, given: Mapping[ArgumentKey, Any]) -> dict[str, int]:
        return {n: given[key].shape[axis] for n, (key, axis, _) in self.axes.items()}


def guards_of(
    lines: Iterable[str], forward: Callable[..., Any], keys: Iterable[ArgumentKey]
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
    bound = inspect.signature(forward).bind_partial(*places, **keywords).arguments
    guards = {}
    for line in lines:
        reader = _SizeReader(bound)
        try:
            tree = reader.visit(ast.parse(line, mode="eval"))
        except (SyntaxError, LookupError, TypeError):
            continue
        allowed = all(isinstance(node, _ALLOWED) for node in ast.walk(tree))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if allowed and reader.axes and names <= {"min", "max", *reader.axes}:
            text = _shown(line)
            guards[text] = Guard(text, ast.unparse(tree), reader.axes)
    return tuple(guards.values())


class _SizeReader(ast.NodeTransformer):
    """Puts names in place of ``L['ids'].size()[1]`` and ``L['args'][0].size()[1]``."""

    def __init__(self, bound: Mapping[str, Any]) -> None:
        self._bound = bound
        self.axes: dict[str, tuple[ArgumentKey, int, str]] = {}

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """Return the name of a size, noted in `axes`."""
        match node:
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(value=of, attr="size"), args=[]),
                slice=ast.Constant(value=int(axis)),
            ):
                key = eval(ast.unparse(of), {"__builtins__": {}, "L": self._bound})
                name = f"size_{key}_{axis}"
                self.axes[name] = (key, axis, _shown(ast.unparse(node)))
                return ast.Name(name, ast.Load())
        raise LookupError("no size of an argument")


def _shown(line: str) -> str:
    return re.sub(r"L\['(\w+)'\]", r"\1", line).replace(".size()", ".shape")
