"""Which columns of the frame become which arguments of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from pandas.api.types import is_list_like, is_scalar

from dask_infer.batch.inputs.column_types import column_type_of
from dask_infer.batch.inputs.frame_columns import is_list, quoted
from dask_infer.batch.inputs.resolve_inputs import resolve_inputs
from dask_infer.client.examples import TOKENIZED, places
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
    columns = call.rows.meta.columns
    inputs = resolve_inputs(
        call.rows.meta,
        request.columns,
        interface_hint=call.recognised.interface,
        shapes=request.shapes,
        schema=call.rows.schema,
        tokenizer=call.tokenizer is not None
        or (call.format.brings_tokenizer(call.spec) and _reads_text(call)),
        feature_names=call.format.feature_names(live, columns),
        fitted=call.format.fitted(live),
        preprocess=request.preprocess is not None,
    )
    _check_arity(call, inputs)
    _check_tokens(call, inputs)
    return inputs


def _reads_text(call: ModelCall) -> bool:
    """Whether a model with a tokenizer of its own gets a column of text."""
    request, meta, columns = call.request, call.rows.meta, call.request.columns
    # Each column that is an argument by itself, and whether objects in it may be text.
    named: list[tuple[Any, bool]]
    if isinstance(columns, Mapping):
        named = [(v, not str(k).startswith(TENSORS)) for k, v in columns.items()]
    elif columns is None:
        named = [(name, len(meta.columns) == 1) for name in meta.columns]
    elif is_list(columns):
        named = [(name, False) for name in columns]
    else:
        parts = columns if isinstance(columns, tuple) else (columns,)
        named = [(name, True) for name in parts]
    lists = {*(request.shapes or {}), *call.rows.schema}
    for name, alone in named:
        if is_scalar(name) and name in meta:
            objects = alone and request.preprocess is None and name not in lists
            kinds = ("text", "object") if objects else ("text",)
            if column_type_of(meta[name].dtype) in kinds:
                return True
    return False


def _check_tokens(call: ModelCall, inputs: Inputs) -> None:
    """Refuse one number a row where a directory's model reads texts."""
    if inputs.tokenized or call.request.preprocess is not None:
        return
    found = places(inputs)
    place = found.get(TOKENIZED[0], found.get(0))
    if place is None or not call.format.brings_tokenizer(call.spec):
        return
    argument = inputs.arguments[place]
    if argument.shape == () and argument.content == "number" and not argument.stacked:
        raise InputError(
            f'model "{call.spec.name}" reads texts or lists of token ids, and column '
            f"{quoted(argument.columns)} holds one number a row; pass a column of "
            "text, or of lists"
        )


def _check_arity(call: ModelCall, inputs: Inputs) -> None:
    """Refuse arguments that a function does not take."""
    request, name, method = call.request, call.spec.name, call.request.method
    signature = call.format.signature(call.recognised.live, method)
    if inputs.tokenized or request.preprocess is not None or signature is None:
        return
    try:
        keys = [*places(inputs)]
        check_arity(name, method or name, signature, keys, request.call_kwargs or {})
    except ArityMismatch as error:
        raise InputError(str(error)) from None
