"""The content key: equal content gives an equal key, in any process.

Dask's `tokenize` of a module changes after a pickle round trip, and names, shapes and
tensors miss attributes and hooks. So the walk has its own rules, by class. Where an
object has no deterministic content the whole key is unique: the model is loaded again,
and never taken for another one.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
import types
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from dask_infer.model.identity import content_code, content_tensors
from dask_infer.model.identity.content_walk import Rule, Walk

logger = logging.getLogger(__name__)


def content_key(obj: object, in_eval: Iterable[object] = ()) -> str:
    """Hex digest of the content of any object, code and weights included.

    Parameters
    ----------
    obj
        A model, an estimator, a function, or anything made of them. Weights are read
        in place, without a copy, if they are contiguous and on the CPU.
    in_eval
        Torch modules in `obj` that will be put into ``eval()`` before they run: their
        `training` does not count.

    Returns
    -------
    str
        32 hexadecimal digits: equal for equal content across processes and pickle
        round trips, or unique to this call where that cannot be promised.
    """
    return known_key(obj, in_eval) or uuid.uuid4().hex


def known_key(
    obj: object, in_eval: Iterable[object] = (), users: list[object] | None = None
) -> str | None:
    """Return the content key; None where the content is not deterministic.

    The user's classes that are met, and other objects with an identity, are added to
    `users`.
    """
    walk = Walk(_ATOMS, _rule_of)
    walk.users = [] if users is None else users
    walk.in_eval = frozenset(map(id, in_eval))
    # Pickles in the store name modules of this package, which move between versions.
    walk.emit("dask_infer", sys.modules["dask_infer"].__version__)
    try:
        walk.visit(obj)
    except Exception as why:  # user code runs here: __reduce__, __getstate__, ...
        _warn(f"{type(why).__name__}: {why}")
        return None
    return walk.hexdigest()


@functools.lru_cache(maxsize=256)
def _warn(why: str) -> None:
    """Warn once of what costs a load at every call."""
    logger.warning(
        "a part of what predict was given has no deterministic content (%s), so each "
        "call sends it to the workers and loads it anew: keep the result of one "
        "call, or leave that part out",
        re.sub(r" at 0x[0-9a-f]+", "", why),
    )


# Plain values


def _plain(walk: Walk, obj: object) -> None:
    walk.emit(type(obj).__name__, obj)


def _bytes(walk: Walk, obj: bytes) -> None:
    walk.emit_bytes("bytes", obj)


def _slice(walk: Walk, obj: slice) -> None:
    walk.visit_all("slice", (obj.start, obj.stop, obj.step))


def _tuple(walk: Walk, obj: tuple[Any, ...]) -> None:
    if not _emit_scalars(walk, obj):
        walk.visit_all("tuple", obj)


def _set(walk: Walk, obj: frozenset[Any] | set[Any]) -> None:
    walk.emit(type(obj).__name__, *sorted(map(walk.digest_apart, obj)))


_ATOMS: dict[type, Rule] = {
    type(None): _plain,
    type(Ellipsis): _plain,
    type(NotImplemented): _plain,
    bool: _plain,
    int: _plain,
    str: _plain,
    range: _plain,
    float: _plain,
    complex: _plain,
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
    walk.emit_bytes("scalars", repr(obj).encode())
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


# Everything else


def _rule_of(obj: object) -> Rule:
    kind = type(obj)
    found = _found.get(kind)
    if found is None:
        found = _found[kind] = _find(kind)
    return found


#: Rules by type, once they were looked for.
_found: weakref.WeakKeyDictionary[type, Rule] = weakref.WeakKeyDictionary()


def _find(kind: type) -> Rule:
    """Return the rule of a type itself, else of the nearest class that has one.

    A library is asked for its rules only where a class of it is among the bases.
    """
    if kind in _EXACT:
        return _EXACT[kind]
    if hasattr(kind, "backend_tokenizer") or kind.__module__ == "tokenizers":
        return _tokenizer
    rules: dict[type, Rule] = {object: Walk.visit_reduced, **content_code.RULES}
    libraries = {str(cls.__module__).partition(".")[0] for cls in kind.__mro__}
    for name in libraries & content_tensors.RULES.keys():
        rules |= content_tensors.RULES[name](sys.modules[name])
    return next(rules[cls] for cls in kind.__mro__ if cls in rules)


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
        walk.visit_reduced(obj)
        return
    state = json.loads(backend.to_str())
    walk.visit(type(obj))
    if backend is not obj:  # which sets both before each call
        for transient in ("padding", "truncation"):
            state.pop(transient, None)
        own = {k: v for k, v in vars(obj).items() if k not in _FLEETING}
        walk.visit_state(own)
    walk.emit_bytes("tokenizer", json.dumps(state, sort_keys=True).encode())


#: Rules for a type and not for what derives from it.
_EXACT: dict[type, Rule] = {
    list: _list,
    dict: _dict,
    OrderedDict: _dict,
    set: _set,
}
