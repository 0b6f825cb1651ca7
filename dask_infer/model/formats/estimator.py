"""Estimators of scikit-learn and its look-alikes, and plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.boosting import feature_names, native_predict
from dask_infer.model.formats.torch_module import Placement
from dask_infer.model.runtime.loaded_model import FunctionModel, LoadedModel
from dask_infer.model.runtime.methods import check_method
from dask_infer.model.store.blob_store import read_blob
from dask_infer.spec.model_spec import ModelSpec


def load_estimator(spec: ModelSpec, placement: Placement) -> LoadedModel:
    """Unpickle an estimator."""
    refuse_dtype(spec, placement)
    return EstimatorModel(spec, _read(spec))


def load_callable(spec: ModelSpec, placement: Placement) -> LoadedModel:
    """Unpickle a function or a callable object."""
    refuse_dtype(spec, placement)
    function = _read(spec)
    if not callable(function):
        raise ModelLoadError(f"{spec.name}: {type(function).__name__} is not callable")
    return FunctionModel(spec, function)


def refuse_dtype(spec: ModelSpec, placement: Placement) -> None:
    """Raise `ModelLoadError` where a dtype was asked of what has none."""
    if placement.dtype is not None:
        raise ModelLoadError(
            f"{spec.name} is no torch module, so it has no dtype to run in; leave "
            "dtype= out"
        )


def _read(spec: ModelSpec) -> Any:
    if spec.blob is None:
        raise ModelLoadError(f"{spec.name}: its spec holds no pickled object")
    return read_blob(spec.blob)


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
        """Return the method asked for, ``predict`` unless told otherwise."""
        name = method or "predict"
        check_method(self.target, name)
        native = native_predict(self.target) if name == "predict" else None
        return native or getattr(self.target, name)


def _without_names(frame: pd.DataFrame) -> Any:
    """Return an array, as the estimator was fitted on one: it warns of names."""
    named = all(isinstance(name, str) for name in frame.columns)
    kinds = {getattr(dtype, "kind", "O") for dtype in frame.dtypes}
    arrays = all(isinstance(dtype, np.dtype) for dtype in frame.dtypes)
    if named and arrays and kinds <= set("biufO"):
        return frame.to_numpy()
    if not named or not all(map(pd.api.types.is_numeric_dtype, frame.dtypes)):
        return frame
    return frame.to_numpy("float64", na_value=np.nan)
