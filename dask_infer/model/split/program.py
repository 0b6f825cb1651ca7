"""A model written as steps: what any interval of it reads, holds and hands on.

Every tier ends in a program. It has no weights, survives pickle without tracing again,
and imports nothing of the user's until a stage is built from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Ref:
    """The value of an earlier step, or an input."""

    name: str


@dataclass(frozen=True)
class Held:
    """A parameter, buffer or constant of the model, by its name."""

    name: str


@dataclass(frozen=True)
class Size:
    """A number that grows with the batch: `fixed` + a share of rows and tokens."""

    fixed: int
    per_row: int = 0
    per_token: int = 0
    per_both: int = 0

    def at(self, rows: int, tokens: int) -> int:
        """Return the number for a batch."""
        both = self.per_both * rows * tokens
        return self.fixed + self.per_row * rows + self.per_token * tokens + both


def fit(base: int, row: int, token: int, both: int, *, rows: int, tokens: int) -> Size:
    """Return the size that was seen at a batch, at twice its rows, its tokens, both."""
    cross = (both - row - token + base) // (rows * tokens)
    per_row = (row - base) // rows - cross * tokens
    per_token = (token - base) // tokens - cross * rows
    fixed = base - rows * per_row - tokens * per_token - rows * tokens * cross
    return Size(fixed, per_row, per_token, cross)


@dataclass(frozen=True)
class Value:
    """What is known of a tensor without computing it."""

    dtype: torch.dtype
    shape: tuple[Size, ...]

    def nbytes(self, rows: int, tokens: int) -> int:
        """Return its bytes for a batch."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size.at(rows, tokens)
        return count


@dataclass(frozen=True)
class Step:
    """One call: of a function, a method of a value, or one of the model's modules."""

    name: str
    kind: Literal["operator", "function", "method", "module"]
    #: ``(namespace, name, overload)`` of an operator, a function, or a name.
    target: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def leaves(value: Any) -> Iterator[Any]:
    """Yield what an argument is made of."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    else:
        yield value


def replaced(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return an argument with its leaves changed, as plain containers."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(replaced(item, change) for item in value))
    if isinstance(value, tuple):
        return tuple(replaced(item, change) for item in value)
    if isinstance(value, list):
        return [replaced(item, change) for item in value]
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return slice(*(replaced(part, change) for part in parts))
    return change(value)


def reads(step: Step) -> Iterator[Ref | Held]:
    """Yield the values and tensors that a step reads."""
    for leaf in leaves((step.args, step.kwargs)):
        if isinstance(leaf, (Ref, Held)):
            yield leaf


@dataclass(frozen=True)
class Program:
    """Steps in the order they run.

    Parameters
    ----------
    inputs
        Names of what the first step may read.
    steps
        The calls.
    outputs
        The leaves of the model's output: a `Ref`, or the value itself.
    values
        What is known of values, by name; a `Size` for numbers.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]
    values: Mapping[str, Value | Size] = field(default_factory=dict)

    @cached_property
    def _defined(self) -> dict[str, int]:
        """Place after which each value exists."""
        defined = dict.fromkeys(self.inputs, 0)
        defined.update({step.name: n + 1 for n, step in enumerate(self.steps)})
        return defined

    @cached_property
    def _last(self) -> dict[str, int]:
        """Last place that each value must reach."""
        last: dict[str, int] = {}
        for place, step in enumerate(self.steps):
            for leaf in reads(step):
                if isinstance(leaf, Ref):
                    last[leaf.name] = place + 1
        for leaf in self.outputs:
            if isinstance(leaf, Ref):
                last[leaf.name] = len(self.steps) + 1
        return last

    def live(self, place: int) -> tuple[str, ...]:
        """Return the values that cross a cut before step `place`, in order."""
        defined, last = self._defined, self._last
        return tuple(
            name
            for name, made in defined.items()
            if made <= place and last.get(name, 0) > place
        )

    def crossings(self, places: tuple[int, ...]) -> list[tuple[str, ...]]:
        """Return `live` at ascending places, without a pass over all values each."""
        found, active = [], dict.fromkeys(self.inputs)
        done = 0
        for place in places:
            for step in self.steps[done:place]:
                active[step.name] = None
            done = max(done, place)
            active = {n: None for n in active if self._last.get(n, 0) > place}
            found.append(tuple(active))
        return found
