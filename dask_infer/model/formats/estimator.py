"""Estimators of scikit-learn and its look-alikes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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
from dask_infer.model.shapes.fitted import fitted_on
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
        check_method(live, method or "predict")

    def feature_names(self, live: Any, columns: Iterable[Any]) -> list[Any] | None:
        """Return the columns that the estimator was fitted on."""
        return feature_names(live, columns)

    def fitted(self, live: Any) -> Fitted:
        """Return whether it was fitted on a table or on texts."""
        return fitted_on(live)

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
