"""Which methods a model has: asked by the client, and again where it is loaded."""

from __future__ import annotations

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


def check_method(model: object, method: str) -> None:
    """Raise `MissingMethodError` where `model` has no method of that name."""
    if callable(getattr(model, method, None)):
        return
    known = [name for name in METHODS if callable(getattr(model, name, None))]
    instead = f"it has {', '.join(known)}" if known else "call it without method="
    name = type(model).__name__
    raise MissingMethodError(f"{name} has no method {method}; {instead}")
