"""Examples of the arguments: what one row of each looks like to shape propagation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from torch import nn

from dask_infer.batch.inputs.decided_dtypes import all_integers
from dask_infer.client.model_call import ModelCall
from dask_infer.model.runtime.loaded_model import keywords_of
from dask_infer.model.runtime.tokenizers import TokenizerDirectory, load_tokenizer
from dask_infer.model.shapes.trace_errors import CannotTrace, Example
from dask_infer.spec import Argument, ArgumentKey, Inputs

#: What tokenizers return where they do not say.
TOKENIZED = ("input_ids", "attention_mask", "token_type_ids")


def examples(call: ModelCall, inputs: Inputs) -> dict[ArgumentKey, Example]:
    """Return one row of each argument, by its position or name in the model's call.

    Raises
    ------
    CannotTrace
        If only running `preprocess` or the tokenizer shows what they are.
    """
    made = _token_examples(call) if inputs.tokenized else {}
    if made and not any(map(_is_text, inputs.arguments)):
        return made  # preprocess= makes the text
    if call.recognised.interface == "tensor":
        _check_traceable(inputs)
    unknown = next((a for a in inputs.arguments if a.shape is None), None)
    if call.request.preprocess is not None and unknown is not None:
        raise unknown_shape(unknown, "what preprocess= makes of them is not known")
    for key, place in places(inputs).items():
        made[key] = _example(inputs.arguments[place], call.rows.meta)
    return made


def places(inputs: Inputs) -> dict[ArgumentKey, int]:
    """Return where each argument of the call stands in `inputs`; tokens do not."""
    found: dict[ArgumentKey, int] = {}
    for place, argument in enumerate(inputs.arguments):
        if not (inputs.tokenized and _is_text(argument)):
            position = sum(isinstance(key, int) for key in found)
            found[position if argument.keyword is None else argument.keyword] = place
    return found


def split_keys(
    made: Mapping[ArgumentKey, Example],
) -> tuple[list[Example], dict[str, Example]]:
    """Return positional and keyword arguments."""
    args = [made[key] for key in sorted(k for k in made if isinstance(k, int))]
    return args, {key: ex for key, ex in made.items() if isinstance(key, str)}


def unknown_shape(argument: Argument, reason: str) -> CannotTrace:
    """Return the error for lists whose length decides what the model returns."""
    name = argument.columns[0]
    return CannotTrace(
        f'the row shape of column "{name}" is known only once it is read (or pass '
        f'shapes={{"{name}": (...)}}), and with example lengths {reason}'
    )


def _example(argument: Argument, frame_meta: pd.DataFrame) -> Example:
    dtype = argument.dtype or "floating"
    if argument.stacked:
        other = "int64" if all_integers(frame_meta, argument) else None
        return Example(dtype, (len(argument.columns),), other)
    if argument.shape in (None, (None,)):
        unknown = argument.content == "object"
        ids, other = unknown or dtype == "int64", "int64" if unknown else None
        return Example(dtype, (None,), other, ids=ids, unknown=unknown)
    if argument.dtype is None:
        return Example(dtype, argument.shape, "int64", unknown=True)
    listed = bool(argument.shape) and dtype == "int64"
    return Example(dtype, argument.shape, "floating" if listed else None)


def _token_examples(call: ModelCall) -> dict[ArgumentKey, Example]:
    """Return what the tokenizer's outputs look like."""
    tokenizer = call.tokenizer
    if call.is_divided and not callable(tokenizer):
        # The parts of a model take the arguments that they were divided for.
        own = TokenizerDirectory(str(call.spec.path), call.spec.key)
        tokenizer = load_tokenizer(own if tokenizer is None else tokenizer)
    names = getattr(tokenizer, "model_input_names", None)
    if names is None and callable(tokenizer) and not _takes_ids(call):
        reason = "which arguments the tokenizer returns is known only once it runs"
        raise CannotTrace(reason)
    first, *rest = names or TOKENIZED
    ids = Example("int64", (None,))
    return {first: ids, **{name: replace(ids, optional=True) for name in rest}}


def _takes_ids(call: ModelCall) -> bool:
    """Whether the model takes ``input_ids``, as far as the client can see."""
    live = call.recognised.live
    if not isinstance(live, nn.Module):
        return True
    function: Any = getattr(live, call.request.method or "forward", None)
    taken = keywords_of(function)
    return taken is None or TOKENIZED[0] in taken


def _check_traceable(inputs: Inputs) -> None:
    """Refuse columns that only `preprocess` can turn into tensors."""
    for argument in inputs.arguments:
        text = _is_text(argument) and not inputs.tokenized
        if text or argument.content == "bytes":
            raise CannotTrace(
                f'column "{argument.columns[0]}" holds {argument.content}, and what '
                "preprocess= makes of it is known only once it runs"
            )


def _is_text(argument: Argument) -> bool:
    return argument.content == "text"
