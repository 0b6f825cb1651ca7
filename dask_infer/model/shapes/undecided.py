"""Whether a model reads stacked integers as such, found out where it is loaded.

With ``meta=`` the client does not run a module's code. The worker does, on shapes alone
and once for each replica, before the first batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask_infer.batch.inputs.decided_dtypes import with_lists
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.shapes.propagate import propagate
from dask_infer.model.shapes.trace_errors import CannotTrace
from dask_infer.spec import Inputs, Undecided


def decided(
    inputs: Inputs,
    undecided: Undecided,
    model: LoadedModel,
    method: str | None,
    call_kwargs: Mapping[str, Any],
) -> Inputs:
    """Return `inputs` with those as int64 that the model refuses as floats."""
    key = (method, *sorted(call_kwargs), repr(undecided))
    if key not in model.decided:
        model.decided[key] = _dtypes(undecided, model, method, call_kwargs)
    return with_lists(inputs, model.decided[key])


def _dtypes(
    undecided: Undecided,
    model: LoadedModel,
    method: str | None,
    call_kwargs: Mapping[str, Any],
) -> dict[int, str]:
    """Return the dtypes of the arguments that the model decides, by place."""
    spec, module = model.spec, model.target
    args, kwargs = undecided.args, undecided.kwargs
    options: dict[str, Any] = {"method": method, "call_kwargs": call_kwargs}
    try:
        traced = propagate(spec, module, args, kwargs, **options)
    except CannotTrace:
        return {}
    return traced.dtypes_at(undecided.places)
