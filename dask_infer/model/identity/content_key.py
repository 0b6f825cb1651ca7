"""The content key: equal content gives an equal key, in any process.

Dask's `tokenize` of a module changes after a pickle round trip, and names, shapes and
tensors together miss what ``self.t = 2.0`` or a hook does. So this walk has rules of
its own. What no rule describes deterministically makes the whole key unique: a model
is then loaded again, and never taken for another one.

Containers, instances, tensors and modules are numbered as they are met; meeting one
again emits its number, which ends cycles and keeps ties apart from equal copies.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import hashlib
import logging
import pathlib
import re
import struct
import types
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from dask_infer.model.identity import content_code, content_tensors
from dask_infer.model.identity.parallel_hash import condensed

logger = logging.getLogger(__name__)

#: Hex digits of a key: 128 bits, half of a SHA-256.
DIGITS = 32


class Unkeyable(Exception):
    """No rule describes an object deterministically."""


def content_key(obj: object) -> str:
    """Hex digest of the content of any object, code and weights included.

    Parameters
    ----------
    obj
        A model, an estimator, a function, or anything made of them. Weights are read
        where they lie, without a copy, if they are contiguous and on the CPU.

    Returns
    -------
    str
        32 hexadecimal digits: equal for equal content across processes and pickle
        round trips, or unique to this call where that cannot be promised.
    """
    walk = Walk()
    try:
        walk.visit(obj)
    except Exception as why:  # user code runs here: __reduce__, __getstate__, ...
        _warn(f"{type(why).__name__}: {why}")
        return uuid.uuid4().hex
    return walk.hexdigest()


@functools.lru_cache(maxsize=256)
def _warn(why: str) -> None:
    """Say once what costs a load at every call."""
    logger.warning(
        "a part of what predict was given has no deterministic content (%s), so each "
        "call sends it to the workers and loads it anew: keep the result of one "
        "call, or leave that part out",
        re.sub(r" at 0x[0-9a-f]+", "", why),
    )


class Walk:
    """One depth-first pass over an object, fed into one hash."""

    def __init__(self, parent: Walk | None = None) -> None:
        self._hash = hashlib.sha256()
        self._parent = parent
        self._level: int = 0 if parent is None else parent._level + 1
        #: Number of each object met, by id.
        self._numbers: dict[int, int] = {}
        #: Objects met: an id must not be reused while the walk lasts.
        self._alive: list[object] = []
        #: Storage of tensors met: address, shape and dtype to number.
        self.storages: dict[object, int] = {}

    def hexdigest(self) -> str:
        """Return the digest of all tokens so far."""
        return self._hash.hexdigest()[:DIGITS]

    def emit(self, tag: str, *parts: object) -> None:
        """Add one token; length prefixes keep neighbours from running together."""
        self.emit_bytes(
            tag, "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
        )

    def emit_bytes(self, tag: str, data: bytes | memoryview) -> None:
        """Add one token of raw bytes."""
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        self._hash.update(f"{tag}:{size}:".encode())
        self._hash.update(condensed(data))

    def visit(self, obj: Any) -> None:
        """Add the content of `obj`."""
        obj = content_code.uncompiled(obj)
        atom = _ATOMS.get(type(obj))
        if atom is not None:
            atom(self, obj)
        elif not self._met(obj):
            self._alive.append(obj)
            self._numbers[id(obj)] = len(self._numbers)
            _rule(obj)(self, obj)

    def visit_all(self, tag: str, items: Iterable[Any]) -> None:
        """Add items in order, and how many they are."""
        items = list(items)
        self.emit(tag, len(items))
        for item in items:
            self.visit(item)

    def visit_state(self, state: dict[str, Any]) -> None:
        """Add attributes, whatever the order in which they were set."""
        if all(type(name) is str for name in state):
            state = {name: state[name] for name in sorted(state)}
        self.emit("state", len(state))
        for name, value in state.items():
            self.visit(name)
            self.visit(value)

    def digest_apart(self, obj: object) -> str:
        """Digest of an element whose place among its siblings means nothing."""
        walk = Walk(self)
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


# Plain values


def _plain(walk: Walk, obj: object) -> None:
    walk.emit(type(obj).__name__, obj)


def _float(walk: Walk, obj: float) -> None:
    walk.emit_bytes("float", struct.pack("<d", obj))


def _complex(walk: Walk, obj: complex) -> None:
    walk.emit_bytes("complex", struct.pack("<dd", obj.real, obj.imag))


def _bytes(walk: Walk, obj: bytes) -> None:
    walk.emit_bytes("bytes", obj)


def _slice(walk: Walk, obj: slice) -> None:
    walk.visit_all("slice", (obj.start, obj.stop, obj.step))


def _tuple(walk: Walk, obj: tuple[Any, ...]) -> None:
    if not _emit_scalars(walk, obj):
        walk.visit_all("tuple", obj)


def _set(walk: Walk, obj: frozenset[Any] | set[Any]) -> None:
    walk.emit(type(obj).__name__, *sorted(map(walk.digest_apart, obj)))


_ATOMS: dict[type, Callable[[Walk, Any], None]] = {
    type(None): _plain,
    type(Ellipsis): _plain,
    type(NotImplemented): _plain,
    bool: _plain,
    int: _plain,
    str: _plain,
    range: _plain,
    float: _float,
    complex: _complex,
    bytes: _bytes,
    slice: _slice,
    tuple: _tuple,
    frozenset: _set,
    types.CodeType: content_code.visit_code,
}

#: Types whose `repr` inside a container says everything, cycles excluded.
_SCALARS = frozenset({type(None), bool, int, float, str})


def _emit_scalars(walk: Walk, obj: Any) -> bool:
    """Add a container of scalars at once; a vocabulary has a million of them."""
    if not _SCALARS.issuperset(map(type, obj)):
        return False
    if isinstance(obj, dict) and not _SCALARS.issuperset(map(type, obj.values())):
        return False
    walk.emit("scalars", repr(obj))
    return True


# Containers


def _list(walk: Walk, obj: list[Any]) -> None:
    if not _emit_scalars(walk, obj):
        walk.visit_all("list", obj)


def _dict(walk: Walk, obj: dict[Any, Any]) -> None:
    walk.emit(type(obj).__name__, len(obj))
    if not _emit_scalars(walk, obj):
        for key, value in obj.items():
            walk.visit(key)
            walk.visit(value)


def _bytearray(walk: Walk, obj: bytearray) -> None:
    walk.emit_bytes("bytearray", memoryview(obj))


_CONTAINERS: dict[type, Callable[[Walk, Any], None]] = {
    list: _list,
    dict: _dict,
    OrderedDict: _dict,
    set: _set,
    bytearray: _bytearray,
}


# Everything else


def _rule(obj: object) -> Callable[[Walk, Any], None]:
    container = _CONTAINERS.get(type(obj))
    if container is not None:
        return container
    return (
        content_tensors.rule(obj)
        or content_code.rule(obj)
        or _named_rule(obj)
        or _instance
    )


def _named_rule(obj: object) -> Callable[[Walk, Any], None] | None:
    if isinstance(obj, enum.Enum):
        return _enum
    if isinstance(obj, pathlib.PurePath):
        return _path
    if isinstance(obj, functools.partial) and type(obj) is functools.partial:
        return _partial
    if hasattr(type(obj), "backend_tokenizer") or type(obj).__module__ == "tokenizers":
        return _tokenizer
    return None


def _enum(walk: Walk, obj: enum.Enum) -> None:
    walk.visit(type(obj))
    walk.emit("member", obj.name)


def _path(walk: Walk, obj: pathlib.PurePath) -> None:
    walk.emit("path", type(obj).__name__, obj)


def _partial(walk: Walk, obj: functools.partial[Any]) -> None:
    walk.visit_all("partial", (obj.func, obj.args, obj.keywords))


#: What a call of a tokenizer leaves behind, and what its Rust part repeats.
_FLEETING = frozenset(
    {
        "_in_target_context_manager",
        "_tokenizer",
        "_vocab",
        "deprecation_warnings",
        "files_loaded",
        "verbose",
    }
)


def _tokenizer(walk: Walk, obj: Any) -> None:
    """Add a Rust tokenizer, without the padding that transformers' last call left."""
    import json

    backend = getattr(obj, "backend_tokenizer", obj)
    if not hasattr(backend, "to_str"):
        _instance(walk, obj)
        return
    state = json.loads(backend.to_str())
    walk.visit(type(obj))
    if backend is not obj:  # which sets both before each call
        for transient in ("padding", "truncation"):
            state.pop(transient, None)
        own = {k: v for k, v in vars(obj).items() if k not in _FLEETING}
        walk.visit_state(own)
    walk.emit("tokenizer", json.dumps(state, sort_keys=True))


def _instance(walk: Walk, obj: Any) -> None:
    """Add an object by what pickle would rebuild it from."""
    reduce = copyreg.dispatch_table.get(type(obj))
    value: Any = reduce(obj) if reduce else obj.__reduce_ex__(4)
    if isinstance(value, str):
        walk.visit(type(obj))
        walk.emit("global", getattr(obj, "__module__", ""), value)
        return
    build, args, state, items, pairs, setter = (*value, *(None,) * 6)[:6]
    walk.visit(type(obj))
    walk.visit(build)
    walk.visit(args)
    if state is None or type(state) is dict:  # no attributes may be either
        walk.visit_state(state or {})
    else:
        walk.visit(state)
    walk.visit_all("items", () if items is None else items)
    walk.visit_all("pairs", () if pairs is None else pairs)
    walk.visit(setter)
