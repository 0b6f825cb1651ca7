"""One depth-first pass over an object, fed into one hash.

Containers, instances, tensors and modules are numbered as they are met; meeting one
again emits its number, which ends cycles and keeps ties apart from equal copies.
"""

from __future__ import annotations

import copyreg
import hashlib
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from dask_infer.model.identity.parallel_hash import parallel_hash

#: Hex digits of a key: 128 bits, half of a SHA-256.
DIGITS = 32

#: Adds the content of an object to a walk.
Rule: TypeAlias = "Callable[[Walk, Any], None]"


class Walk:
    """The hash so far, and the objects met.

    Parameters
    ----------
    atoms
        Rules of plain values by their exact type; they are not numbered.
    rule_of
        Returns the rule for any other object.
    parent
        The walk that this one digests an element for.
    """

    def __init__(
        self,
        atoms: dict[type, Rule],
        rule_of: Callable[[object], Rule],
        parent: Walk | None = None,
    ) -> None:
        self._hash = hashlib.sha256()
        self._rules = atoms, rule_of
        self._parent = parent
        self._level: int = 0 if parent is None else parent._level + 1
        #: Ids of the torch modules that will be in ``eval()``, whatever they are in.
        self.in_eval: frozenset[int] = parent.in_eval if parent else frozenset()
        #: The user's classes met, and objects that code may compare by identity.
        self.users: list[object] = parent.users if parent else []
        #: Number of each object met, by id.
        self._numbers: dict[int, int] = {}
        #: Objects met: an id must not be reused while the walk lasts.
        self._alive: list[object] = []
        #: Storage of tensors met: address, shape and dtype to number.
        self.storages: dict[object, int] = {}

    def hexdigest(self) -> str:
        """Return the digest of all tokens so far."""
        return self._hash.hexdigest()[:DIGITS]

    def emit(self, *token: object) -> None:
        """Add one token, a tag and parts whose `repr` is the same everywhere."""
        self._hash.update(repr(token).encode())

    def emit_bytes(self, tag: str, data: bytes | memoryview) -> None:
        """Add one token of raw bytes; their number says where they end."""
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        self.emit(tag, size)
        self._hash.update(parallel_hash(data))

    def visit(self, obj: Any) -> None:
        """Add the content of `obj`."""
        atoms, rule_of = self._rules
        atom = atoms.get(type(obj))
        if atom is not None:
            atom(self, obj)
        elif not self._met(obj := uncompiled(obj)):
            self._alive.append(obj)
            self._numbers[id(obj)] = len(self._numbers)
            rule_of(obj)(self, obj)

    def visit_all(self, tag: str, items: Iterable[Any]) -> None:
        """Add items in order, and how many they are."""
        items = list(items)
        self.emit(tag, len(items))
        for item in items:
            self.visit(item)

    def visit_state(self, state: dict[str, Any]) -> None:
        """Add attributes, whatever the order in which they were set."""
        names = list(state)
        if all(type(name) is str for name in names):
            names.sort()
        self.visit(tuple(names))
        for name in names:
            self.visit(state[name])

    def visit_reduced(self, obj: Any) -> None:
        """Add an object by what pickle would rebuild it from."""
        reduce = copyreg.dispatch_table.get(type(obj))
        value: Any = reduce(obj) if reduce else obj.__reduce_ex__(4)
        self.visit(type(obj))
        if type(obj) is object or any(type(obj) is user for user in self.users):
            self.users.append(obj)
        if isinstance(value, str):
            self.emit("global", getattr(obj, "__module__", ""), value)
            return
        build, args, state, items, pairs, setter = (*value, *(None,) * 6)[:6]
        self.visit(build)
        self.visit(args)
        if state is None or type(state) is dict:  # no attributes may be either
            self.visit_state(state or {})
        else:
            self.visit(state)
        self.visit_all("items", () if items is None else items)
        self.visit_all("pairs", () if pairs is None else pairs)
        self.visit(setter)

    def digest_apart(self, obj: object) -> str:
        """Digest of an element whose place among its siblings means nothing."""
        walk = Walk(*self._rules, self)
        walk.visit(obj)
        return walk.hexdigest()

    def _met(self, obj: object) -> bool:
        walk: Walk | None = self
        while walk is not None:
            number = walk._numbers.get(id(obj))
            if number is not None:
                self.emit("again", walk._level, number)
                return True
            walk = walk._parent
        return False


def uncompiled(obj: Any) -> Any:
    """Return the module or function that ``torch.compile`` wraps, else `obj`."""
    # functools.wraps copies these marks to other functions: look where the code is.
    if isinstance(obj, types.FunctionType):
        home = obj.__globals__.get("__name__", "")
        compiled = home.startswith("torch._dynamo")
        return getattr(obj, "_torchdynamo_orig_callable", obj) if compiled else obj
    if type(obj).__name__ == "OptimizedModule":
        return vars(obj).get("_modules", {}).get("_orig_mod", obj)
    return obj
