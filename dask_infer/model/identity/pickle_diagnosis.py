"""Which part of an object cannot be pickled, in the user's words."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import socket
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

_DEEPEST = 20

_REMEDY = (
    "build it on the workers: pass a class, or ModelSource.from_factory(build), "
    "instead of the object"
)


def explain(
    obj: object, subject: str, error: Exception, fails: Callable[[object], bool]
) -> str:
    """Return the message for an object that cannot be pickled.

    Parameters
    ----------
    obj
        What was to be pickled.
    subject
        What the user calls it: "the model".
    error
        Why it could not be.
    fails
        Whether a part of it cannot be pickled either.
    """
    place, culprit = _find(obj, "", fails)
    if not place:
        return f"{subject} cannot be sent to the workers: {error}; {_REMEDY}"
    what = _name(culprit)
    return f"{subject} holds {what} ({place}), which cannot travel; {_REMEDY}"


def _find(
    obj: object, place: str, fails: Callable[[object], bool]
) -> tuple[str, object]:
    for _ in range(_DEEPEST):
        for name, part in _parts(obj):
            if part is not obj and fails(part):
                place, obj = f"{place}.{name}".lstrip("."), part
                break
        else:
            break
    return place, obj


def _parts(obj: Any) -> Iterator[tuple[str, object]]:
    """Yield the parts of an object under the names that its author gave them."""
    if isinstance(obj, types.FunctionType):
        yield from _free_variables(obj)
    elif isinstance(obj, types.MethodType):
        yield type(obj.__self__).__name__, obj.__self__
    elif isinstance(obj, functools.partial):
        yield from (("func", obj.func), ("args", obj.args), ("keywords", obj.keywords))
    elif isinstance(obj, dict):
        yield from ((str(key), value) for key, value in list(obj.items()))
    elif isinstance(obj, (list, tuple, set)):
        yield from ((str(place), value) for place, value in enumerate(obj))
    elif not isinstance(obj, (type, types.ModuleType)):
        yield from list(getattr(obj, "_modules", {}).items())
        yield from list(getattr(obj, "__dict__", {}).items())


def _free_variables(func: types.FunctionType) -> Iterator[tuple[str, object]]:
    with contextlib.suppress(ValueError):  # a variable without a value
        found = inspect.getclosurevars(func)
        yield from (*found.nonlocals.items(), *found.globals.items())
    for name, parameter in inspect.signature(func).parameters.items():
        yield name, parameter.default


_WORDS: tuple[tuple[Any, str], ...] = (
    (io.IOBase, "an open file"),
    (types.GeneratorType, "a generator"),
    (socket.socket, "a socket"),
    (threading.Thread, "a thread"),
    ((type(threading.Lock()), type(threading.RLock())), "a lock"),
)


def _name(culprit: object) -> str:
    for classes, words in _WORDS:
        if isinstance(culprit, classes):
            return words
    kind = type(culprit)
    article = "an" if kind.__name__[:1].lower() in "aeiou" else "a"
    return f"{article} {kind.__module__}.{kind.__qualname__}"
