"""The shapes of a call: examples of its arguments, sent through the model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dask_infer.batch.inputs.decided_dtypes import with_integers, with_lists
from dask_infer.batch.inputs.frame_columns import quoted
from dask_infer.client.call_group import split_call
from dask_infer.client.examples import examples, places, split_keys, unknown_shape
from dask_infer.client.model_call import ModelCall
from dask_infer.errors import InputError, OutputError
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.runtime.stage_model import read_chain
from dask_infer.model.shapes.propagate import check_call, propagate
from dask_infer.model.shapes.trace_errors import CannotTrace, Example, label
from dask_infer.model.shapes.traced_outputs import Traced
from dask_infer.model.split_refusals import CannotSplit
from dask_infer.spec import ArgumentKey, Inputs, Undecided

#: Shapes of earlier calls that are remembered, by the content of all they follow from.
MOST_TRACED = 64
_traced: OrderedDict[str, Traced] = OrderedDict()

#: Examples of ``meta=``.
METAS = 'meta="float32" or meta={"score": "float32"}'


def trace(call: ModelCall, inputs: Inputs) -> Traced:
    """Return what the model would make of `inputs`; nothing is loaded or computed.

    Raises
    ------
    CannotTrace
        If shapes do not fit, or only a run on data shows them.
    """
    if call.request.method == "generate" and call.request.postprocess is not None:
        raise CannotTrace("postprocess= may make anything of generated tokens")
    try:
        return _propagated(call, inputs)
    except CannotTrace as error:
        unknown = next((a for a in inputs.arguments if a.shape is None), None)
        if unknown is None or type(error) is not CannotTrace:
            raise
        if call.request.preprocess is not None:  # its error names the column
            raise
        raise unknown_shape(unknown, error.reason or str(error)) from error


def _propagated(call: ModelCall, inputs: Inputs) -> Traced:
    """Propagate shapes, or return those of an equal call before."""
    spec, request = call.spec, call.request
    made = examples(call, inputs)
    if traced := _split(call, made):
        return traced
    args, kwargs = split_keys(made)
    options: dict[str, Any] = {
        "method": request.method,
        "call_kwargs": request.call_kwargs,
        "dtype": request.dtype,
    }
    key = content_key((spec.key, spec.kind, args, kwargs, options))
    traced = _traced.pop(key, None) or propagate(
        spec, call.recognised.live, args, kwargs, **options
    )
    _traced[key] = traced
    if len(_traced) > MOST_TRACED:
        _traced.popitem(last=False)
    return traced


def _split(call: ModelCall, made: Mapping[ArgumentKey, Example]) -> Traced | None:
    """Return the shapes of the chain that a call in stages needs anyway.

    None where there is none, or the model has to be tried with several dtypes. A
    model that cannot be split may have a plainer error once shapes are propagated.
    """
    request, stages = call.request, call.request.layout.stages
    own = request.method is None and request.dtype != "int8"
    if stages == 1 or not own or any(ex.other == "int64" for ex in made.values()):
        return None
    with suppress(CannotSplit, CannotTrace):
        traced: Traced | None = read_chain(split_call(call, made)).traced()
        return traced
    return None


def check(call: ModelCall, inputs: Inputs) -> None:
    """Refuse methods and arguments that a module does not take; runs no model code."""
    args, kwargs = split_keys(examples(call, inputs))
    check_call(
        call.spec,
        call.recognised.live,
        args,
        kwargs,
        method=call.request.method,
        call_kwargs=call.request.call_kwargs,
    )


def undecided_integers(call: ModelCall, inputs: Inputs) -> Undecided | None:
    """Return the integers that a model may read as floats or as integers."""
    made = examples(call, inputs)
    chosen = {
        key: place
        for key, place in places(inputs).items()
        if key in made and made[key].other is not None
    }
    args, kwargs = split_keys(made)
    return Undecided(tuple(args), kwargs, chosen) if chosen else None


def with_traced_dtypes(call: ModelCall, inputs: Inputs, traced: Traced) -> Inputs:
    """Return `inputs` in the dtypes in which the model took them."""
    keys = places(inputs)
    integers = [
        keys[key] if isinstance(key, int) else key
        for key, dtype in traced.dtypes.items()
        if dtype == "int64"
    ]
    inputs = with_integers(inputs, call.rows.meta, integers)
    made = examples(call, inputs)
    lists = {
        key: place
        for key, place in keys.items()
        if key in made and (made[key].unknown or made[key].other == "floating")
    }
    return with_lists(inputs, traced.dtypes_at(lists))


def shape_error(
    call: ModelCall, error: CannotTrace, inputs: Inputs | None = None
) -> Exception:
    """Return the public error for shapes that do not fit or cannot be found."""
    mismatch = isinstance(error, InputError)  # of shapes, or of arguments
    if mismatch and call.request.preprocess is not None:
        return OutputError(
            "shapes were propagated as if preprocess= kept columns and dtypes, and "
            f"so they do not fit: {error}; if it changes them, pass meta=, such as "
            f"{METAS}"
        )
    if mismatch:
        return InputError(_with_columns(str(error), inputs))
    return OutputError(
        f'the output columns of model "{call.spec.name}" cannot be known before it '
        f"runs: {getattr(error, 'reason', None) or error}; pass meta=, such as {METAS}"
    )


def _with_columns(message: str, inputs: Inputs | None) -> str:
    """Say of each argument in a message which columns it is made of.

    Shapes are remembered for all columns alike, so the message does not know them.
    """
    if inputs is None:
        return message
    arguments = places(inputs)
    for key, place in arguments.items():
        names = quoted(inputs.arguments[place].columns)
        before, after = f"{label(key)} is (", f"{label(key)}, of {names}, is ("
        message = message.replace(before, after)
        if len(arguments) == len(inputs.arguments[place].columns) == 1:
            message = message.replace('astype({"x": "', f'astype({{{names}: "')
            message = message.replace('columns=["x"]', f"columns=[{names}]")
    return message
