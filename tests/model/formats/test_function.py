"""Functions are called with arrays as they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import (
    LoadedModel,
    load,
)


def loaded(model: Any, **options: Any) -> LoadedModel:
    found = recognise(model)
    found.snapshot()
    return load(found.spec, **options)


def test_function_is_called_as_it_is() -> None:
    def scale(x: np.ndarray, factor: float = 2.0) -> np.ndarray:
        return x * factor

    model = loaded(scale)
    assert model.interface == "numpy"
    assert model.accepts == {"x", "factor"}
    assert model.call((np.ones(3),), {"factor": 3.0}).tolist() == [3, 3, 3]
