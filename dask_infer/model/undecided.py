"""Whether a model reads stacked integers as such, found out where it is loaded.

With ``meta=`` the client does not run a module's code. The worker does, on shapes alone
and once for each replica, before the first batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from dask_infer.model.loaded import LoadedModel
from dask_infer.model.refusals import CannotTrace
from dask_infer.model.shapes import propagate
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
    if key not in model.integers:
        model.integers[key] = _integers(undecided, model, method, call_kwargs)
    arguments = list(inputs.arguments)
    for place in model.integers[key]:
        arguments[place] = replace(arguments[place], dtype="int64")
    return replace(inputs, arguments=tuple(arguments))


def _integers(
    undecided: Undecided,
    model: LoadedModel,
    method: str | None,
    call_kwargs: Mapping[str, Any],
) -> tuple[int, ...]:
    """Return the places of the arguments that go in as integers."""
    spec, module = model.spec, model.target
    if isinstance(module, torch.nn.Module) and spec.kind == "factory":
        spec = replace(spec, kind="module")  # what it built
    args, kwargs = undecided.args, undecided.kwargs
    options: dict[str, Any] = {"method": method, "call_kwargs": call_kwargs}
    try:
        traced = propagate(spec, module, args, kwargs, **options)
    except CannotTrace:
        return ()
    return tuple(undecided.places[key] for key in traced.as_integers)
