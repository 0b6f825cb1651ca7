"""The columns that the model's outputs become, known before the model runs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np

from dask_infer.batch.inputs.column_types import column_type_of
from dask_infer.batch.inputs.plain_columns import plain_frame
from dask_infer.batch.outputs.resolve_outputs import (
    outputs_from_estimator,
    outputs_from_meta,
    resolve_outputs,
)
from dask_infer.client.model_call import ModelCall
from dask_infer.client.tracing import (
    METAS,
    check,
    shape_error,
    trace,
    undecided_integers,
    with_traced_dtypes,
)
from dask_infer.errors import InputError, OutputError
from dask_infer.model.shapes.trace_errors import CannotTrace
from dask_infer.spec import Inputs, Outputs, Undecided


def call_outputs(
    call: ModelCall, inputs: Inputs, kept: tuple[Any, ...]
) -> tuple[Outputs, Inputs, Undecided | None]:
    """Return the outputs, the inputs in their dtypes, and what only a worker can see.

    Raises
    ------
    OutputError
        If the outputs cannot be known before the model runs and ``meta=`` is missing.
    InputError
        If the model refuses the inputs.
    """
    meta, output = call.request.meta, call.request.output
    if meta is None:
        return *_inferred(call, inputs, kept), None
    listed = False
    with suppress(OutputError):
        listed = call.format.is_fitted and len(_described(call, None)) > 1
    outputs = outputs_from_meta(meta, output, kept, listed=listed)
    return outputs, *_checked(call, inputs)


def _inferred(
    call: ModelCall, inputs: Inputs, kept: tuple[Any, ...]
) -> tuple[Outputs, Inputs]:
    """Return what the model says of its outputs; `postprocess` may change them."""
    try:
        if not call.format.is_fitted:
            return _traced(call, inputs, kept)
        described = _described(call, _column_dtypes(call, inputs))
        return outputs_from_estimator(described, call.request.output, kept), inputs
    except OutputError as error:
        if call.request.postprocess is None or "pass meta=" in str(error):
            raise
        raise OutputError(
            f"{error}; postprocess= may change the output: pass meta=, such as {METAS}"
        ) from error


def _traced(
    call: ModelCall, inputs: Inputs, kept: tuple[Any, ...]
) -> tuple[Outputs, Inputs]:
    try:
        traced = trace(call, inputs)
    except CannotTrace as error:
        raise shape_error(call, error, inputs) from error
    ragged = any(a.shape is None or None in a.shape for a in inputs.arguments)
    outputs = resolve_outputs(
        traced.output,
        rows=traced.rows,
        tokens=traced.tokens,
        output=call.request.output,
        kept=kept,
        text=traced.ragged or inputs.tokenized or ragged,
        uneven=traced.uneven,
    )
    return outputs, with_traced_dtypes(call, inputs, traced)


def _checked(call: ModelCall, inputs: Inputs) -> tuple[Inputs, Undecided | None]:
    """Refuse what can be seen without the model's code, which ``meta=`` never runs.

    Returns what only its code on shapes would show: workers run it. A group has no
    worker to ask before the first batch, and its stages are split here anyway.
    """
    if call.recognised.interface != "tensor":
        return inputs, None
    request = call.request
    grouped = request.auto or not request.layout.is_local or bool(request.resources)
    try:
        undecided = undecided_integers(call, inputs)
        if call.format.declares_outputs or (grouped and undecided):
            return with_traced_dtypes(call, inputs, trace(call, inputs)), None
        check(call, inputs)
        return inputs, undecided
    except CannotTrace as error:
        if isinstance(error, InputError) and request.preprocess is None:
            raise shape_error(call, error, inputs) from error
        return inputs, None


# --- fitted models ------------------------------------------------------------------


def _described(call: ModelCall, given: dict[Any, str] | None) -> Any:
    """Return what a fitted model's attributes say of its outputs, a list.

    `given` are the dtypes of its columns, where they are known.
    """
    live, request = call.recognised.live, call.request
    try:
        return call.format.described_outputs(
            live, request.method, request.call_kwargs, given
        )
    except CannotTrace as error:
        raise shape_error(call, error) from error


def _column_dtypes(call: ModelCall, inputs: Inputs) -> dict[Any, str] | None:
    """Return the dtypes of the columns that a fitted model gets, unless they change."""
    if call.request.preprocess is not None:
        return None
    names = [name for argument in inputs.arguments for name in argument.columns]
    frame = call.rows.meta[names]
    known = {
        name: dtype.name if isinstance(dtype, np.dtype) else "object"
        for name, dtype in plain_frame(frame).dtypes.items()
    }
    texts = [name for name in names if column_type_of(frame[name].dtype) == "text"]
    return {**known, **dict.fromkeys(texts, "string")}
