"""Dtypes of what a transformer passes on: values of its input that it does not change.

Selected, passed through or put together by a ``ColumnTransformer``, integers are no
floats (which hold 53 bits of them), and text is text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

#: What is no number: names of dtypes as described outputs have them.
_OBJECTS = ("string", "object")


def kept_dtypes(estimator: Any, given: Sequence[str]) -> list[str] | None:
    """Return the dtypes of the columns that ``transform`` gives; None if all new.

    Parameters
    ----------
    estimator
        A fitted transformer.
    given
        Dtypes of the columns that it gets, "string" for text.
    """
    if estimator == "passthrough" or getattr(estimator, "func", estimator) is None:
        return list(given)
    if hasattr(estimator, "output_indices_"):
        return _side_by_side(estimator, given)
    if hasattr(estimator, "get_support"):
        picked = [given[place] for place in estimator.get_support(indices=True)]
        whole = [common_dtype(given)] * len(picked)  # it picks from one array
        return picked if gives_frames(estimator) else whole
    found: list[str] | None = None
    if isinstance(steps := getattr(estimator, "steps", None), list):
        found = list(given)
        for _, step in steps:
            found = None if found is None else kept_dtypes(step, found)
    return found


def _side_by_side(estimator: Any, given: Sequence[str]) -> list[str]:
    """Return the dtypes of columns that several transformers give."""
    from dask_infer.model.estimator_outputs import own_dtype

    places = estimator._transformer_to_input_indices
    found: list[str] = []
    for name, part, _ in estimator.transformers_:
        at = estimator.output_indices_.get(name, slice(0, 0))
        width = at.stop - at.start
        if not width or name not in places:
            continue
        kept = kept_dtypes(part, [given[place] for place in places[name]])
        found += kept or [own_dtype(part)] * width
    return found


def gives_frames(estimator: Any) -> bool:
    """Whether ``set_output`` asked for frames."""
    configured = getattr(estimator, "_sklearn_output_config", {})
    return configured.get("transform") in ("pandas", "polars")


def common_dtype(dtypes: Sequence[str]) -> str:
    """Return the dtype of columns in one array."""
    if set(dtypes) == {"string"}:
        return "string"
    if any(name in _OBJECTS for name in dtypes):
        return "object"
    try:
        kind = np.result_type(*dtypes)
    except TypeError:  # dates beside numbers
        return "object"
    return "float64" if kind.kind == "f" else str(kind.name)
