"""The methods of a model and what they take: for the client, and where it is loaded."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import torch

from dask_infer.errors import ModelLoadError

#: What estimators and generative models are asked for, in the order of an error text.
METHODS = (
    "predict",
    "predict_proba",
    "predict_log_proba",
    "decision_function",
    "transform",
    "score_samples",
    "kneighbors",
    "apply",
    "generate",
    "encode",
)


class MissingMethodError(ModelLoadError, AttributeError):
    """The model has no such method."""


def check_method(
    model: object, method: str, name: str | None = None, *, given: bool = True
) -> None:
    """Raise `MissingMethodError` where `model`, called `name`, has no such method.

    `given` says whether the user asked for it.
    """
    if callable(getattr(model, method, None)):
        return
    own = set(dir(model)) - (set(dir(torch.nn.Module)) - {"forward"})
    known = [n for n in METHODS if n in own and callable(getattr(model, n, None))]
    near = difflib.get_close_matches(method, [n for n in own - {method} if n[0] != "_"])
    other = "leave out method=" if given else "name another by method="
    instead = f"did you mean {' or '.join(near)}?" if near and given else other
    if known:
        instead = f"it has {', '.join(known)}" + ("" if given else f"; {other}")
    kind = type(model).__name__
    if inspect.isroutine(model):
        name = getattr(model, "__name__", None)
    what = kind if name in (None, kind) else f"{name} ({kind})"
    raise MissingMethodError(f"{what} has no method {method}; {instead}")


def signature_of(function: Any) -> inspect.Signature | None:
    """Return how a function, or a method of a script, is called; None if hidden."""
    schema = getattr(function, "schema", None)
    if isinstance(schema, torch._C.FunctionSchema):
        return _script_signature(schema)
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _script_signature(schema: Any) -> inspect.Signature:
    kind = inspect.Parameter
    parameters = []
    for argument in schema.arguments[1:]:
        has_default = argument.has_default_value()
        default = argument.default_value if has_default else kind.empty
        parameters.append(
            kind(argument.name, kind.POSITIONAL_OR_KEYWORD, default=default)
        )
    return inspect.Signature(parameters)
