"""Classes that travel by value, and which class the reader of a pickle gets.

cloudpickle names a class that it takes by value by a number, and gives the class of
that number, where the reader has it, the code and globals of the pickle. So a class, or
a global that its methods read, that changed between two calls would change models that
are resident; and to read a pickle would change the user's own class.

Here the name is where the class stands and its content, so that a changed class is
another one. The reader's class of a name is taken as it is while it has that content:
objects in rows, in results and in models are then of one class, as in the user's
process. It is built anew once it was changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import sys
import threading
import uuid
import weakref
from collections.abc import Iterator
from typing import Any

from cloudpickle import cloudpickle

from dask_infer.model.identity.content_key import known_key

#: Classes of models have one of these methods.
_MODELS = {"__call__", "predict", "transform"}
#: What cloudpickle rebuilds classes with; the last but one argument is the name.
_BUILDERS = {"_make_skeleton_class", "_make_skeleton_enum"}

#: cloudpickle's tables: name of each class, and class of each name.
_name_of: Any = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS
_class_of: Any = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
_lock: Any = cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK

#: States of `_built`, where content keys stand: its attributes are not all there yet;
#: what runs here changes it.
_UNFILLED, _UNSTABLE = "unfilled", "unstable"
#: Content of the classes that were built here, from pickles.
_built: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()
#: Their attributes when that was found, or was found again.
_attributes: weakref.WeakKeyDictionary[type, dict[str, Any]] = (
    weakref.WeakKeyDictionary()
)
#: Metaclass and bases of the classes of models among them.
_parts: weakref.WeakKeyDictionary[type, list[Any]] = weakref.WeakKeyDictionary()


# Writing


def reduce_class(cls: type, reduced: Any, named: dict[str, Any] | None = None) -> Any:
    """Return how to pickle a class, from how cloudpickle would.

    Classes of models are always built anew: their objects are neither rows nor
    results, and so the user's own class may change in any way. So is what leads to
    them, or to objects of the user's: the original would lead to the originals.

    Parameters
    ----------
    named
        Takes the names of classes that the reader may have, and references to them.
    """
    if not isinstance(reduced, tuple) or reduced[0].__name__ not in _BUILDERS:
        return reduced
    build, (*args, name, extra), state, *_ = reduced
    users: list[object] = [cls]
    key = known_key(cls, users=users)
    builder = _model_class if any(map(_is_copied, users)) else _value_class
    if cls not in _built:
        if builder is _model_class:
            name = _name(cls, name, key or uuid.uuid4().hex)
        elif key is None:
            return reduced
        else:
            name = _rename(cls, key)
            if named is not None:
                named[name] = weakref.ref(cls)
    return builder, (build, args, name, extra), state, None, None, _fill


def are_current(named: dict[str, Any]) -> bool:
    """Whether the classes of these names are those that the user has now.

    A cell that is run again makes another class of equal content.
    """
    for name, reference in named.items():
        cls = reference()
        if cls is None or not _is_current(cls, name):
            return False
    return True


def _is_current(cls: type, name: str) -> bool:
    """Whether the user has no other class where this one stood."""
    return _in_main(name.rpartition("-")[0]) in (None, cls)


def _is_copied(user: object) -> bool:
    """Whether the reader gets a copy; what leads to the original must be one, too."""
    if not isinstance(user, type):
        return not isinstance(user, enum.Enum)
    return _is_model(user)


def _is_model(cls: type) -> bool:
    if dataclasses.is_dataclass(cls) or issubclass(cls, (tuple, BaseException, type)):
        return False
    return any(_MODELS & vars(base).keys() for base in cls.__mro__)


def _rename(cls: type, key: str) -> str:
    """Name a class by its content; it keeps no name of a content that it had."""
    with _lock:
        before = _name_of.get(cls) or uuid.uuid4().hex
        name = _name(cls, before, key)
        if before != name and "-" in before and _class_of.get(before) is cls:
            _class_of.pop(before, None)
        _name_of[cls] = name
        if cls in _built:
            _class_of.setdefault(name, cls)
        else:
            _class_of[name] = cls  # the latest of equal ones
    return name


def _name(cls: type, before: str, key: str) -> str:
    """Return the name of a class of some content, from one that it has."""
    return f"{_place(cls) or before.rpartition('-')[0] or before}-{key}"


def _place(cls: type) -> str | None:
    """Return the name under which a notebook or script has a class, if it does."""
    place = f"{cls.__module__}.{cls.__qualname__}"
    return place if "-" not in place and _in_main(place) is cls else None


def _in_main(place: str) -> object:
    """Return what a notebook or script has under a name; None where it has nothing."""
    module, _, path = place.partition(".")
    found: Any = sys.modules.get(module) if module == "__main__" else None
    if getattr(found, "__name__", None) != "__main__":  # a worker that runs a script
        return None
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


# Reading


class SharedClasses:
    """Classes in what was read that others of this process have, too."""

    def __init__(self) -> None:
        self._names: dict[type, str] = {}

    def __repr__(self) -> str:
        return f"<SharedClasses {', '.join(sorted(self._names.values()))}>"

    def add(self, cls: type, name: str) -> None:
        """Add a class that was read."""
        self._names[cls] = name

    def complete(self) -> None:
        """Note the content of classes that are all there now."""
        for cls in self._names:
            if _built.get(cls) == _UNFILLED:
                _built[cls] = known_key(cls) or _UNSTABLE
                _attributes[cls] = _references(cls)

    def update(self, others: SharedClasses) -> None:
        """Add the classes of another reading."""
        self._names.update(others._names)

    def changed(self) -> bool:
        """Whether one is no longer as it was read, or the user has another like it."""
        return any(
            _class_of.get(name) is not cls
            or not (_is_untouched(cls) or _is_unchanged(cls, name))
            for cls, name in self._names.items()
            if _built.get(cls) != _UNSTABLE
        )


class _Readings(threading.local):
    """The readings under way in a thread, the innermost last."""

    def __init__(self) -> None:
        self.stack: list[SharedClasses] = []


_readings = _Readings()


@contextlib.contextmanager
def sharing() -> Iterator[SharedClasses]:
    """Collect the shared classes in all that this thread reads meanwhile."""
    shared = SharedClasses()
    _readings.stack.append(shared)
    try:
        yield shared
        shared.complete()
    finally:
        _readings.stack.pop()
    for outer in _readings.stack[-1:]:
        outer.update(shared)


def _model_class(build: Any, args: Any, name: str, extra: Any) -> type:
    """Return the class of a model: new, or that of another model here, filled anew."""
    parts = [part for part in args if isinstance(part, (type, tuple))]
    found = _class_of.get(name)
    if found is not None and _parts.get(found) != parts:
        _class_of.pop(name, None)
    cls: type = build(*args, name, extra)
    _parts[cls], _built[cls] = parts, _UNSTABLE
    return cls


def _value_class(build: Any, args: Any, name: str, extra: Any) -> type:
    """Return the class of a name, or a new one where it is not as it was written."""
    found = _class_of.get(name)
    if found is not None and _built.get(found) != _UNFILLED:
        if _is_unchanged(found, name):
            return _noted(found, name)
        if found not in _built:  # the user's own
            _rename(found, known_key(found) or uuid.uuid4().hex)
        else:  # by code that runs here, which may do so again and again
            name = f"{name}-{_UNSTABLE}"
    cls: type = build(*args, name, extra)
    _built.setdefault(cls, _UNSTABLE if name.endswith(_UNSTABLE) else _UNFILLED)
    return _noted(cls, name)


def _noted(cls: type, name: str) -> type:
    for shared in _readings.stack[-1:]:
        shared.add(cls, name)
    return cls


def _fill(cls: type, state: Any) -> None:
    """Give a new class its attributes; one that was here has them."""
    if _built.get(cls) in (_UNFILLED, _UNSTABLE):
        cloudpickle._class_setstate(cls, state)


def _is_unchanged(cls: type, name: str) -> bool:
    if cls not in _built:
        # What another class replaced belongs to others that were replaced.
        return _is_current(cls, name) and known_key(cls) == name.rpartition("-")[2]
    is_same = known_key(cls) == _built[cls]
    if is_same:
        _attributes[cls] = _references(cls)
    return is_same


def _is_untouched(cls: type) -> bool:
    """Whether no pickle was read into a class that was built here.

    The content of one whose methods read large globals takes long to find, and this is
    asked for each partition.
    """
    before, now = _attributes.get(cls, {}), vars(cls)
    return before.keys() == now.keys() and all(
        (held() if isinstance(held, weakref.ref) else held) is now[name]
        for name, held in before.items()
    )


def _references(cls: type) -> dict[str, Any]:
    return {name: _reference(value) for name, value in vars(cls).items()}


def _reference(value: Any) -> Any:
    try:
        return weakref.ref(value)  # a method holds its class, which is to be let go
    except TypeError:
        return value
