"""The shapes of a request: examples of its arguments, sent through the model.

Runs on the client. `model.shapes.propagate` does the propagation; here the columns
become its examples, and what it refuses becomes the error that the user reads.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from dask_infer.client.request import Request
from dask_infer.errors import InputError, OutputError
from dask_infer.spec import Argument, Inputs, ModelSpec, Undecided

if TYPE_CHECKING:
    from dask_infer.model.recognise import Recognised
    from dask_infer.model.shapes.propagate import CannotTrace, Example, Traced

#: What tokenizers return where they do not say.
TOKENIZED = ("input_ids", "attention_mask", "token_type_ids")

#: Shapes of earlier calls that are remembered, by the content of all they follow from.
MOST_TRACED = 64
_traced: OrderedDict[str, Traced] = OrderedDict()

#: Examples of ``meta=``.
METAS = 'meta="float32" or meta={"score": "float32"}'


@dataclass(frozen=True)
class Tracer:
    """Propagates the shapes of one request through its model."""

    request: Request
    recognised: Recognised
    #: Empty frame with the columns and dtypes of the rows.
    frame_meta: pd.DataFrame
    #: How the model will want its batches.
    interface: str

    def trace(self, inputs: Inputs) -> Traced:
        """Return what the model would make of `inputs`, or raise `CannotTrace`."""
        from dask_infer.model.shapes.propagate import CannotTrace

        if self.request.method == "generate" and self.request.postprocess is not None:
            raise CannotTrace("what postprocess= makes of generated tokens is its own")
        args, kwargs = self.examples(inputs)
        try:
            return self._propagated(args, kwargs)
        except CannotTrace as error:
            unread = next((a for a in inputs.arguments if a.shape is None), None)
            if unread is None or type(error) is not CannotTrace:
                raise
            raise _unread(unread, error.reason or str(error)) from error

    def _propagated(self, args: list[Example], kwargs: dict[str, Example]) -> Traced:
        from dask_infer.model.identity.content_key import content_key
        from dask_infer.model.shapes.propagate import propagate

        spec, request = self.recognised.spec, self.request
        options: dict[str, Any] = {
            "method": request.method,
            "call_kwargs": request.call_kwargs,
            "dtype": request.dtype,
        }
        key = content_key((spec.key, spec.kind, args, kwargs, options))
        traced = _traced.pop(key, None) or propagate(
            spec, self.recognised.live, args, kwargs, **options
        )
        _traced[key] = traced
        if len(_traced) > MOST_TRACED:
            _traced.popitem(last=False)
        return traced

    def check(self, inputs: Inputs) -> None:
        """Refuse methods and arguments that a module does not take; runs nothing."""
        from dask_infer.model.shapes.propagate import check_call

        args, kwargs = self.examples(inputs)
        check_call(
            self.recognised.spec,
            self.recognised.live,
            args,
            kwargs,
            method=self.request.method,
            call_kwargs=self.request.call_kwargs,
        )

    def undecided(self, inputs: Inputs) -> Undecided | None:
        """Return the integers that a model may read as floats or as such."""
        args, kwargs = self.examples(inputs)
        places = _places(inputs, args, kwargs, lambda ex: ex.integers or ex.floats)
        return Undecided(tuple(args), kwargs, places) if places else None

    def with_integers(self, inputs: Inputs, traced: Traced) -> Inputs:
        """Return `inputs` with those as integers that the model took as such."""
        from dask_infer.batch.inputs.resolve_inputs import with_integers, with_lists

        places = _positional(inputs)
        integers = [places[k] if isinstance(k, int) else k for k in traced.as_integers]
        inputs = with_integers(inputs, self.frame_meta, integers)
        args, kwargs = self.examples(inputs)
        asked = _places(inputs, args, kwargs, lambda ex: ex.unknown or ex.floats)
        return with_lists(inputs, traced.dtypes(asked))

    def examples(self, inputs: Inputs) -> tuple[list[Example], dict[str, Example]]:
        """One row of each argument, as shape propagation wants it."""
        tokens = self._token_examples() if inputs.tokenized else {}
        if tokens and not any(map(_is_text, inputs.arguments)):
            return [], tokens  # preprocess= makes the text
        if self.interface == "tensor":
            _check_traceable(inputs)
        arguments = inputs.arguments
        unread = next((a for a in arguments if a.shape is None), None)
        if self.request.preprocess is not None and unread is not None:
            raise _unread(unread, "what preprocess= makes of them is not known")
        made = {
            place: _example(argument, self.frame_meta)
            for place, argument in enumerate(arguments)
            if not (inputs.tokenized and _is_text(argument))
        }
        named = {str(arguments[p].keyword): example for p, example in made.items()}
        named.pop("None", None)
        return [made[place] for place in _positional(inputs)], tokens | named

    def _token_examples(self) -> dict[str, Example]:
        """Return what the tokenizer's outputs look like."""
        from dask_infer.model.shapes.propagate import CannotTrace, Example

        tokenizer = self.request.tokenizer
        names = getattr(tokenizer, "model_input_names", None)
        if names is None and callable(tokenizer) and not self._takes_ids():
            reason = "which arguments the tokenizer returns is known only once it runs"
            raise CannotTrace(reason)
        first, *rest = names or TOKENIZED
        ids = Example("int64", (None,))
        return {first: ids, **{n: replace(ids, optional=True) for n in rest}}

    def _takes_ids(self) -> bool:
        """Whether the model takes ``input_ids``, as far as the client can tell."""
        from torch import nn

        live = getattr(self.recognised.live, "_orig_mod", self.recognised.live)
        if not isinstance(live, nn.Module):
            return True
        function = getattr(live, self.request.method or "forward", None)
        try:
            taken = inspect.signature(function).parameters  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return True
        catches_all = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        return catches_all or TOKENIZED[0] in taken


def refusal(
    error: Exception, spec: ModelSpec, *, preprocess: bool = False
) -> Exception:
    """Return the public error for shapes that do not fit or cannot be found."""
    from dask_infer.model.shapes.propagate import ArityMismatch, ShapeMismatch

    mismatch = isinstance(error, (ArityMismatch, ShapeMismatch))
    if mismatch and preprocess:
        return OutputError(
            "shapes were propagated as if preprocess= kept columns and dtypes, and "
            f"so they do not fit: {error}; if it changes them, pass meta=, such as "
            f"{METAS}"
        )
    if mismatch:
        return InputError(str(error))
    reason = getattr(error, "reason", None) or error
    return OutputError(
        f'the output columns of model "{spec.name}" cannot be known before it runs: '
        f"{reason}; pass meta=, such as {METAS}"
    )


def _is_text(argument: Argument) -> bool:
    return argument.content == "text"


def _positional(inputs: Inputs) -> list[int]:
    """Places of the arguments that the model gets by position; tokens have names."""
    return [
        place
        for place, argument in enumerate(inputs.arguments)
        if argument.keyword is None and not (inputs.tokenized and _is_text(argument))
    ]


def _places(
    inputs: Inputs,
    args: Sequence[Example],
    kwargs: Mapping[str, Example],
    chosen: Callable[[Example], bool],
) -> dict[int | str, int]:
    """Return the places of the arguments whose examples are chosen, by their keys."""
    places: dict[int | str, int] = dict(enumerate(_positional(inputs)))
    for place, argument in enumerate(inputs.arguments):
        if argument.keyword is not None:
            places[argument.keyword] = place
    examples: dict[int | str, Example] = dict(enumerate(args))
    examples.update(kwargs)
    return {
        k: place for k, place in places.items() if k in examples and chosen(examples[k])
    }


def _check_traceable(inputs: Inputs) -> None:
    """Refuse what only `preprocess` makes a tensor of."""
    from dask_infer.model.shapes.propagate import CannotTrace

    for argument in inputs.arguments:
        opaque = argument.content == "bytes" or (
            _is_text(argument) and not inputs.tokenized
        )
        if opaque:
            raise CannotTrace(
                f'column "{argument.columns[0]}" holds {argument.content}, and what '
                "preprocess= makes of it is known only once it runs"
            )


def _unread(argument: Argument, reason: str) -> CannotTrace:
    """Return the refusal of lists whose length decides what the model returns."""
    from dask_infer.model.shapes.propagate import CannotTrace

    name = argument.columns[0]
    return CannotTrace(
        f'the row shape of column "{name}" is known only once it is read (or pass '
        f'shapes={{"{name}": (...)}}), and with made-up ones {reason}'
    )


def _example(argument: Argument, frame_meta: pd.DataFrame) -> Example:
    from dask_infer.batch.inputs.resolve_inputs import all_integers
    from dask_infer.model.shapes.propagate import Example

    if argument.stacked:
        return Example(
            argument.dtype or "floating",
            (len(argument.columns),),
            integers=all_integers(frame_meta, argument),
        )
    dtype = argument.dtype or "floating"
    if argument.shape in (None, (None,)):
        unknown = argument.content == "object"
        ids = unknown or dtype == "int64"
        return Example(dtype, (None,), integers=unknown, ids=ids, unknown=unknown)
    unknown = argument.dtype is None
    floats = bool(argument.shape) and dtype == "int64"
    return Example(
        dtype, argument.shape, integers=unknown, unknown=unknown, floats=floats
    )
