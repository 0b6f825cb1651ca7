"""Which arguments a function takes of those that columns and `call_kwargs` give."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from dask_infer.model.shapes.trace_errors import TWO, ArityMismatch, Example
from dask_infer.spec import ArgumentKey


def by_key(args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[ArgumentKey, Any]:
    """Return the arguments of a call by place and by keyword."""
    keyed: dict[ArgumentKey, Any] = dict(enumerate(args))
    keyed.update(kwargs.items())
    return keyed


def taken(
    name: str,
    function: str,
    signature: inspect.Signature,
    examples: Mapping[ArgumentKey, Example],
    extra: Iterable[str],
) -> dict[ArgumentKey, Example]:
    """Return the arguments that a function takes, a mask of lists of ids included.

    Parameters
    ----------
    name, function
        What messages call the model and the function.
    examples
        What columns give; optional ones are left out where they are not taken.
    extra
        Keywords of `call_kwargs`.

    Raises
    ------
    ArityMismatch
        It takes other arguments.
    """
    parameters = signature.parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    found = {
        key: ex
        for key, ex in examples.items()
        if takes_any or not ex.optional or key in parameters
    }
    mask = "attention_mask"
    if mask in parameters and any(ex.ids for ex in found.values()):
        ids = Example("int64", (None,))
        found = {key: ids if ex.ids else ex for key, ex in found.items()}
        place = list(parameters).index(mask)
        if place >= sum(isinstance(key, int) for key in found):
            found.setdefault(mask, ids)
    check_arity(name, function, signature, found, extra)
    return found


def without_cache(
    module: torch.nn.Module, signature: inspect.Signature, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `call_kwargs` that keep a model of transformers from returning a cache."""
    caches = hasattr(module, "config") and "use_cache" in signature.parameters
    return {"use_cache": False, **extra} if caches else dict(extra)


def check_arity(
    name: str,
    function: str,
    signature: inspect.Signature,
    examples: Iterable[ArgumentKey],
    extra: Iterable[str],
) -> None:
    """Raise `ArityMismatch` unless columns and `call_kwargs` bind to the signature.

    Parameters
    ----------
    examples
        Places and keywords of what columns give.
    extra
        Keywords of `call_kwargs`.
    """
    parameters = signature.parameters.values()
    empty = inspect.Signature.empty  # annotations are too long for a message
    bare = inspect.Signature([p.replace(annotation=empty) for p in parameters])
    shown = f'model "{name}": {function}{bare}'
    given = tuple(examples)
    keywords = [key for key in given if isinstance(key, str)]
    if twice := sorted(set(keywords) & set(extra)):
        raise ArityMismatch(
            f"{shown} gets {_listed(twice)} from columns and call_kwargs"
        )
    named = [
        p.name
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if unknown := [key for key in extra if not takes_any and key not in named]:
        near = difflib.get_close_matches(unknown[0], named, n=1)
        hint = f"; did you mean {_listed(near)}?" if near else ""
        raise ArityMismatch(f"{shown} takes no {_listed(unknown)} of call_kwargs{hint}")
    try:
        places = [None] * (len(given) - len(keywords))
        signature.bind(*places, **dict.fromkeys((*keywords, *extra)))
    except TypeError as error:
        columns = f"columns give {len(given)} argument{'s' * (len(given) != 1)}"
        columns += f" ({_listed(keywords)} by name)" if keywords else ""
        raise ArityMismatch(f"{shown}: {error}, {columns}; {TWO}") from None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
