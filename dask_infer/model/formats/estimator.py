"""Estimators of scikit-learn and its look-alikes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd

from dask_infer.model.formats.format import Format, Recognised, read_object
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.methods import check_method
from dask_infer.model.runtime.place_module import Placement
from dask_infer.model.shapes.boosting import Described, feature_names, native_predict
from dask_infer.model.shapes.estimator_outputs import estimator_outputs
from dask_infer.model.source import ModelSource
from dask_infer.spec import Fitted
from dask_infer.spec.model_spec import ModelSpec

_PREDICTS = ("predict", "predict_proba", "decision_function")


class EstimatorFormat(Format):
    """A fitted object; its attributes say what it reads and returns."""

    kind = "estimator"
    interface = "frame"
    has_dtype = False
    is_fitted = True
    on_host = True
    extra = "scikit-learn"
    libraries = ("sklearn",)

    def recognise(self, given: Any, method: str | None) -> Recognised | None:
        """Return what predicts, was fitted, or has `method` and cannot be called."""
        if isinstance(given, ModelSource):
            return self.pickled(given.target) if given.kind == self.kind else None
        named = method is not None and callable(getattr(given, method, None))
        if _is_estimator(given) or (named and not callable(given)):
            return self.pickled(given)
        return None

    def check_method(self, live: Any, method: str | None) -> None:
        """Raise `MissingMethodError` where the estimator lacks `method`."""
        check_method(live, method or "predict", given=method is not None)

    def feature_names(self, live: Any, columns: Iterable[Any]) -> list[Any] | None:
        """Return the columns that the estimator was fitted on."""
        return feature_names(live, columns)

    def fitted(self, live: Any) -> Fitted:
        """Return whether it was fitted on a table or texts, and what was missing."""
        return Fitted(
            table=getattr(live, "n_features_in_", None) is not None,
            texts=_reads_texts(_first(live)),
            none=_knows_none(live),
        )

    def described_outputs(
        self,
        live: Any,
        method: str | None,
        call_kwargs: Mapping[str, Any] | None,
        given: Mapping[Any, str] | None,
    ) -> list[Described]:
        """Return what the attributes of the estimator say that it returns."""
        return estimator_outputs(live, method, call_kwargs=call_kwargs, given=given)

    def load(self, spec: ModelSpec, placement: Placement) -> LoadedModel:
        """Unpickle the estimator."""
        return EstimatorModel(spec, read_object(spec))


def _is_estimator(model: Any) -> bool:
    # A Hugging Face pipeline has a predict too, but users call it.
    bases = type(model).__mro__
    if any(base.__module__.startswith("transformers.") for base in bases):
        return False
    if any(callable(getattr(model, name, None)) for name in _PREDICTS):
        return True
    # What is fitted is an estimator, if only to say which methods it has.
    fitted = ("transform", "get_params")
    return callable(getattr(model, "fit", None)) and any(
        callable(getattr(model, name, None)) for name in fitted
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


class EstimatorModel(LoadedModel):
    """An estimator, called with pandas frames."""

    def __init__(self, spec: ModelSpec, estimator: Any) -> None:
        nbytes = spec.nbytes or len(cloudpickle.dumps(estimator))
        super().__init__(spec, "frame", estimator, nbytes)

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None = None
    ) -> Any:
        """Return what the method makes of a frame, as the estimator was fitted."""
        return super().call(tuple(map(self._as_fitted, args)), kwargs, method)

    def _as_fitted(self, given: Any) -> Any:
        if not isinstance(given, pd.DataFrame):
            return given
        fitted = feature_names(self.target, given.columns)
        if fitted is None:
            nameless = hasattr(self.target, "n_features_in_")
            return _without_names(given) if nameless else given
        # Else the estimator itself says what is missing.
        every = set(fitted) <= set(given.columns)
        return given[fitted] if every else given

    def function(self, method: str | None) -> Callable[..., Any]:
        """Return the method asked for, ``predict`` if none is."""
        name = method or "predict"
        check_method(self.target, name)
        native = native_predict(self.target) if name == "predict" else None
        return native or getattr(self.target, name)


def _without_names(frame: pd.DataFrame) -> Any:
    """Return an array, as the estimator was fitted on one: it warns of names."""
    named = all(isinstance(name, str) for name in frame.columns)
    codes = {getattr(dtype, "kind", "O") for dtype in frame.dtypes}
    arrays = all(isinstance(dtype, np.dtype) for dtype in frame.dtypes)
    if named and arrays and codes <= set("biufO"):
        return frame.to_numpy()
    if not named or not all(map(pd.api.types.is_numeric_dtype, frame.dtypes)):
        return frame
    return frame.to_numpy("float64", na_value=np.nan)
