"""Estimators of scikit-learn and its look-alikes, and plain functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cloudpickle

from dask_infer.errors import ModelLoadError
from dask_infer.model.loaded import FunctionModel, LoadedModel
from dask_infer.model.methods import check_method
from dask_infer.model.modules import Placement
from dask_infer.model.store import read_blob
from dask_infer.spec.model import ModelSpec


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

    def function(self, method: str | None) -> Callable[..., Any]:
        """Return the method asked for, ``predict`` unless told otherwise."""
        name = method or "predict"
        check_method(self.target, name)
        return getattr(self.target, name)  # type: ignore[no-any-return]
