"""What an estimator was fitted on, read from the estimator itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from dask_infer.spec import Fitted


def fitted_on(estimator: Any) -> Fitted:
    """Return whether it was a table or texts, and what was missing in it."""
    return Fitted(
        table=getattr(estimator, "n_features_in_", None) is not None,
        texts=_reads_texts(_first(estimator)),
        none=_knows_none(estimator),
    )


def _first(estimator: Any) -> Any:
    """Return the step that sees the input: of a pipeline, or of a search over one."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    steps = getattr(estimator, "steps", None) or getattr(
        estimator, "transformer_list", None
    )
    return _first(steps[0][1]) if isinstance(steps, list) and steps else estimator


def _reads_texts(estimator: Any) -> bool:
    """Whether it iterates over texts, as vectorisers do: of a frame, the names."""
    with suppress(Exception):
        tags = estimator.__sklearn_tags__().input_tags
        return bool(tags.string and not tags.two_d_array)
    with suppress(Exception):  # scikit-learn 1.5
        return "string" in estimator._get_tags()["X_types"]
    return False


def _knows_none(estimator: Any) -> bool:
    """Whether what was fitted holds None where values are missing, and never NaN."""
    found = list(_missing(estimator, set()))
    return bool(found) and all(value is None for value in found)


def _missing(value: Any, seen: set[int]) -> Iterator[Any]:
    """Every missing value among the categories and statistics of all steps."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        objects = value.flat if value.dtype == object else ()
        yield from (v for v in objects if v is None or _is_nan(v))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _missing(inner, seen)
    elif hasattr(value, "get_params") and hasattr(value, "__dict__"):
        if vars(value).get("missing_values", ...) is None:
            yield None
        for inner in vars(value).values():
            yield from _missing(inner, seen)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value
