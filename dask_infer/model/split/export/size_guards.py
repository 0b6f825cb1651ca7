"""Guards: the sizes of inputs for which an export follows the model's code.

Where code asks `if ids.shape[1] < 16`, ``torch.export`` follows the branch of the
example, and notes the question (torch 2.13: `_guards_code`, lines of Python). An export
is wrong where the answer is another one, so chains ask again for each batch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils import _pytree as pytree

from dask_infer.spec import ArgumentKey

#: A size of an argument, as torch writes it, and where it writes the argument.
_SIZE = re.compile(r"((L(?:\[[^]]+\])+)\.size\(\)\[\d+\])")
#: All names that guards of sizes have; strides and values are no business of a chain.
_NAMES = {"L", "size", "min", "max"}


@dataclass(frozen=True)
class Guard:
    """A condition on the sizes of inputs."""

    #: As torch writes it: ``L['ids'].size()[1] < 16``.
    line: str
    #: Places and keywords of the call's arguments by the names of parameters: `L`.
    bound: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The condition as people read it: `ids.shape[1] < 16`."""
        return re.sub(r"L\['(\w+)'\]", r"\1", self.line).replace(".size()", ".shape")

    def holds(self, given: Mapping[ArgumentKey, Any]) -> bool:
        """Return whether a call's arguments meet it."""
        try:
            return bool(self._value(self.line, given))
        except ZeroDivisionError:  # a batch without rows: nothing can be wrong
            return True

    def sizes(self, given: Mapping[ArgumentKey, Any]) -> str:
        """Return the sizes that it speaks of, as `ids.shape[1] is 20`."""
        sizes = dict.fromkeys(size for size, _ in _SIZE.findall(self.line))
        found = [(Guard(s, self.bound).text, self._value(s, given)) for s in sizes]
        return ", ".join(f"{text} is {size}" for text, size in found)

    def _value(self, line: str, given: Mapping[ArgumentKey, Any]) -> Any:
        arguments = pytree.tree_map(given.get, dict(self.bound))
        names = {"__builtins__": {}, "min": min, "max": max, "L": arguments}
        return eval(line, names)


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
        arguments = [argument for _, argument in _SIZE.findall(line)]
        try:
            names = set(compile(line, "<guard>", "eval").co_names)
            for argument in arguments:
                eval(argument, {"__builtins__": {}, "L": bound})
        except (SyntaxError, LookupError, TypeError):  # of none of them
            continue
        if arguments and names <= _NAMES:
            guard = Guard(line, bound)
            guards[guard.text] = guard
    return tuple(guards.values())
