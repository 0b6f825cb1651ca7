"""Which columns of the frame become which arguments of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas.api.types import is_list_like

from dask_infer.batch.inputs.column_types import column_type_of
from dask_infer.batch.inputs.resolve_inputs import resolve_inputs
from dask_infer.client.examples import TOKENIZED
from dask_infer.client.model_call import ModelCall
from dask_infer.errors import InputError
from dask_infer.model.shapes.call_arguments import check_arity
from dask_infer.model.shapes.trace_errors import ArityMismatch
from dask_infer.spec import Inputs

#: How arguments begin that no model takes as text: its own tokens, images, sounds.
TENSORS = (*TOKENIZED, "input_", "inputs_", "pixel_", "position_")


def kept_columns(keep: Any, labels: pd.Index[Any]) -> tuple[Any, ...]:
    """Return the input columns that the result carries, as ``keep=`` names them."""
    columns = list(labels)
    if isinstance(keep, bool):
        return tuple(columns) if keep else ()
    if isinstance(keep, Mapping) or not is_list_like(keep, allow_sets=False):
        raise ValueError(f"keep={keep!r}: pass True, False or a list of columns")
    kept = tuple(keep)
    for name in kept:
        if name not in columns:
            raise InputError(
                f'keep names column "{name}", which the frame does not have; it has '
                f"{', '.join(map(str, columns))}"
            )
        if kept.count(name) > 1:
            raise ValueError(f'keep names column "{name}" twice; name it once')
    return kept


def call_inputs(call: ModelCall) -> Inputs:
    """Return the arguments of the model.

    Raises
    ------
    InputError
        If a column is missing or cannot become an argument, or if the model takes
        other arguments.
    """
    request, live = call.request, call.recognised.live
    columns = call.frame_meta.columns
    inputs = resolve_inputs(
        call.frame_meta,
        request.columns,
        interface_hint=call.interface,
        shapes=request.shapes,
        schema=call.schema,
        tokenizer=call.tokenizer is not None
        or (call.format.brings_tokenizer(call.spec) and _reads_text(call)),
        feature_names=call.format.feature_names(live, columns),
        fitted=call.format.fitted(live),
        preprocess=request.preprocess is not None,
    )
    _check_arity(call, inputs)
    return inputs


def _reads_text(call: ModelCall) -> bool:
    """Whether a model with a tokenizer of its own gets a column of text."""
    columns = call.request.columns
    named = columns.values() if isinstance(columns, Mapping) else columns
    if columns is None or isinstance(columns, str):
        named = list(call.frame_meta.columns) if columns is None else [columns]
    types = {
        name: column_type_of(call.frame_meta[name].dtype)
        for name in named
        if isinstance(name, str) and name in call.frame_meta
    }
    objects = {name for name, held in types.items() if held == "object"}
    return "text" in types.values() or bool(objects & _objects_as_text(call))


def _objects_as_text(call: ModelCall) -> set[str]:
    """Columns of objects that a model of texts reads as text."""
    request, columns = call.request, call.request.columns
    if request.preprocess is not None:
        return set()
    if isinstance(columns, Mapping):
        named = [v for k, v in columns.items() if not str(k).startswith(TENSORS)]
    elif columns is None and len(call.frame_meta.columns) == 1:
        named = list(call.frame_meta.columns)
    else:
        named = list(columns) if isinstance(columns, tuple) else [columns]
    lists = {*(request.shapes or {}), *call.schema}
    return {name for name in named if isinstance(name, str)} - lists


def _check_arity(call: ModelCall, inputs: Inputs) -> None:
    """Refuse arguments that a function does not take."""
    request, name = call.request, call.spec.name
    unknown = inputs.tokenized or request.preprocess is not None
    method = request.method
    signature = call.format.signature(call.recognised.live, method)
    if unknown or signature is None:
        return
    arguments = inputs.arguments
    places = range(sum(a.keyword is None for a in arguments))
    keys = [*places, *(a.keyword for a in arguments if a.keyword is not None)]
    try:
        check_arity(name, method or name, signature, keys, request.call_kwargs or {})
    except ArityMismatch as error:
        raise InputError(str(error)) from None
