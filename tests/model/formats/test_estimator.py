from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dask_infer.errors import ModelLoadError
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import load
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.methods import MissingMethodError, check_method

linear_model = pytest.importorskip("sklearn.linear_model")

FRAME = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0) % 3})
TARGET = (FRAME["a"] > 9).astype(int)


def loaded(model: Any, **options: Any) -> LoadedModel:
    found = recognise(model)
    found.snapshot()
    return load(found.spec, **options)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "decision_function"])
def test_estimator_gives_what_its_method_gives(method: str) -> None:  # DM-01..08
    estimator = linear_model.LogisticRegression().fit(FRAME, TARGET)
    model = loaded(estimator)
    wanted = getattr(estimator, method)(FRAME)
    np.testing.assert_array_equal(model.call((FRAME,), {}, method), wanted)
    assert (model.interface, model.floating) == ("frame", None)
    assert model.nbytes > 100


def test_estimator_predicts_without_method() -> None:
    estimator = linear_model.LogisticRegression().fit(FRAME, TARGET)
    output = loaded(estimator).call((FRAME,), {})
    np.testing.assert_array_equal(output, estimator.predict(FRAME))


def test_missing_method_names_the_estimator_and_what_it_has() -> None:  # DM-01..08
    estimator = linear_model.LinearRegression().fit(FRAME, TARGET)
    text = "LinearRegression has no method predict_proba; it has predict"
    with pytest.raises(MissingMethodError, match=text):
        check_method(estimator, "predict_proba")
    with pytest.raises(AttributeError, match=text):
        loaded(estimator).function("predict_proba")
    check_method(estimator, "predict")


def test_dtype_is_for_torch_modules_only() -> None:
    estimator = linear_model.LinearRegression().fit(FRAME, TARGET)
    for model in (estimator, np.tanh):
        with pytest.raises(ModelLoadError, match="leave dtype= out"):
            loaded(model, dtype="bfloat16")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = recognise(linear_model.LinearRegression().fit(FRAME, TARGET)).spec
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelLoadError, match=r"LinearRegression.*\[scikit-learn\]"):
        load(spec)


@pytest.mark.parametrize("dtype", ["float64", "Float64", "float64[pyarrow]"])
def test_an_estimator_fitted_on_arrays_does_not_warn_of_names(dtype: str) -> None:
    estimator = linear_model.LinearRegression().fit(FRAME.to_numpy(), TARGET)
    output = loaded(estimator).call((FRAME.astype(dtype),), {})
    np.testing.assert_allclose(output, estimator.predict(FRAME.to_numpy()))


def test_an_estimator_picks_the_columns_it_was_fitted_on() -> None:
    estimator = linear_model.LinearRegression().fit(FRAME, TARGET)
    wider = FRAME.assign(c=1.0)[["c", "b", "a"]]
    output = loaded(estimator).call((wider,), {})
    np.testing.assert_array_equal(output, estimator.predict(FRAME))
    with pytest.raises(ValueError, match="feature names"):
        loaded(estimator).call((wider[["c", "a"]],), {})
