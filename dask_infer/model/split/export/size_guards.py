"""Guards: the sizes of inputs for which an export follows the model's code.

Where code asks `if ids.shape[1] < 16`, ``torch.export`` follows the branch of the
example, and notes the question (torch 2.13: `_guards_code`, lines of Python). An export
is wrong where the answer is another one, so chains ask again for each batch.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from dask_infer.spec import ArgumentKey

#: What lines call to compute with sizes: `x.shape[0] ** 0.5` is of a float.
_FUNCTIONS: dict[str, Any] = {"min": min, "max": max, "abs": abs, "round": round}
_FUNCTIONS |= {"math": math, "torch": torch}

#: Names of what may be another for each batch, and is no business of a chain.
_OTHERS = {"stride", "storage_offset"}


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
        arguments = pytree.tree_map(given.get, dict(self.bound))
        names = {"__builtins__": {}, **_FUNCTIONS, "L": arguments}
        try:
            return bool(eval(self.line, names))
        except ZeroDivisionError:  # a batch without rows: nothing can be wrong
            return True


def guards_of(
    lines: Iterable[str],
    forward: Callable[..., Any],
    given: Mapping[ArgumentKey, Any],
) -> tuple[Guard, ...]:
    """Return the guards that speak of sizes of a call's tensors, and of nothing else.

    `lines` are what torch noted, by the names of the parameters of `forward`. One that
    cannot be asked again is an error: the export may be wrong for other sizes.
    """
    places = [key for key in given if isinstance(key, int)]
    keywords = {key: key for key in given if isinstance(key, str)}
    bound = inspect.signature(forward).bind_partial(*places, **keywords).arguments
    guards = {}
    for line in lines:
        guard = Guard(line, bound)
        try:
            names = set(compile(line, "<guard>", "eval").co_names)
            if {"L", "size"} <= names and not names & _OTHERS:
                guard.holds(given)
                guards[guard.text] = guard
        except (SyntaxError, LookupError, TypeError):  # of other arguments
            continue
    return tuple(guards.values())
