"""Dtypes of what a transformer passes on: values of its input that it does not change.

Selected, passed through or put together by a ``ColumnTransformer``, integers are no
floats (which hold 53 bits of them), and text is text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dask_infer.model.shapes.boosting import Described, feature_names

#: What is no number: names of dtypes as described outputs have them.
_OBJECTS = ("string", "object")


def keeping(
    estimator: Any, described: list[Described], given: Mapping[Any, str], method: str
) -> list[Described]:
    """Return the same with the dtypes of input columns that are passed on."""
    names = feature_names(estimator, given)
    dtypes = [given[name] for name in names or given if name in given]
    if method != "transform" or len(dtypes) != getattr(
        estimator, "n_features_in_", len(dtypes)
    ):
        return described
    kept = kept_dtypes(estimator, dtypes) if dtypes else None
    framed = described[0][0] is not None
    # Numbers that a row of the one array has.
    count = math.prod(size or 0 for size in described[0][2])
    if not kept or len(kept) != (len(described) if framed else count):
        return described
    kept = kept if framed else [common_dtype(kept)]
    return [
        (name, "float64" if dtype.startswith("float") else dtype, shape)
        for (name, _, shape), dtype in zip(described, kept, strict=True)
    ]


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


def own_dtype(estimator: Any) -> str:
    """Return the dtype that a transformer gives, or was asked for; floats are float64.

    A vote gives labels, a mask truth values, and filled-in text stays text.
    """
    if type(estimator).__name__ == "MissingIndicator":
        return "bool"
    if getattr(estimator, "voting", None) == "hard":
        return "int64"
    filled = getattr(estimator, "statistics_", None)
    if isinstance(filled, np.ndarray) and filled.dtype.kind == "O":
        return "object"
    try:
        dtype = np.dtype(getattr(estimator, "dtype", None) or "float64")
    except TypeError:
        return "float64"
    return dtype.name if dtype.kind in "iub" else "float64"
