"""Functions and callable objects: the model is what they compute."""

from __future__ import annotations

import inspect
from typing import Any

from dask_infer.model.formats.format import Format, Recognised, read_object
from dask_infer.model.runtime.loaded_model import FunctionModel
from dask_infer.model.runtime.methods import check_method, signature_of
from dask_infer.model.runtime.place_module import Placement
from dask_infer.spec.model_spec import ModelSpec


class FunctionFormat(Format):
    """Any callable, called with NumPy arrays as it is."""

    kind = "callable"
    interface = "numpy"
    has_dtype = False
    on_host = True

    def recognise(self, given: Any, method: str | None) -> Recognised | None:
        """Return any callable."""
        return self.pickled(given) if callable(given) else None

    def check_method(self, live: Any, method: str | None) -> None:
        """Raise `MissingMethodError` where the object lacks `method`."""
        if method is not None:
            check_method(live, method)

    def signature(self, live: Any, method: str | None) -> inspect.Signature | None:
        """Return the signature; None for builtins that hide it."""
        return signature_of(getattr(live, method) if method else live)

    def load(self, spec: ModelSpec, placement: Placement) -> FunctionModel:
        """Unpickle the function."""
        return FunctionModel(spec, read_object(spec))
