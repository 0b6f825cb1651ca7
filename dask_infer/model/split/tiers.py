"""A model split into a chain: the first tier that can do it exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dask_infer.model.runtime.footprint import parse_dtype
from dask_infer.model.shapes.sandbox import sandbox
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split.by_export import by_export
from dask_infer.model.split.by_layers import by_layers
from dask_infer.model.split.by_masking import by_masking
from dask_infer.model.split.by_program import by_program
from dask_infer.model.split.call import Call
from dask_infer.model.split.candidates import check_cuts
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.opened import open_original
from dask_infer.model.split.refusals import CannotSplit
from dask_infer.model.split.sequential import by_sequence
from dask_infer.spec import ModelSpec


def split(
    spec: ModelSpec,
    live: object | None,
    args: Sequence[Example],
    kwargs: Mapping[str, Example],
    *,
    call_kwargs: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    cuts: tuple[str, ...] | None = None,
) -> Chain:
    """Split a model into layer groups, without its weights, data or a real call.

    Parameters
    ----------
    spec
        The model.
    live
        The caller's module, which is left untouched; for a factory what builds it when
        called. None to read the spec's own.
    args, kwargs
        One row of each argument.
    call_kwargs
        Extra keyword arguments of every call, which become part of the chain.
    dtype
        Floating dtype that the model runs in; None as it is.
    cuts
        Modules before which to cut, and nowhere else; None for every sensible place.

    Raises
    ------
    CannotSplit
        If no way of splitting is exact; names the cause, the line and the remedy.
    """
    examples: dict[int | str, Example] = dict(enumerate(args))
    examples.update(kwargs.items())
    with sandbox():
        if spec.kind == "exported":
            return by_program(spec, examples, parse_dtype(dtype), cuts)
        original = open_original(spec, live, parse_dtype(dtype))
        call = Call.of(original, examples, dict(call_kwargs or {}))
        check_cuts(spec.name, original.module, cuts)
        if chain := by_sequence(original, call, cuts):
            return chain
        try:
            return by_export(original, call, cuts)
        except CannotSplit as error:
            if error.__cause__ is None:  # it is the cuts, not the code
                raise
            refusal = error
        try:
            return by_layers(original, call, cuts, refusal)
        except CannotSplit as error:
            refusal = error
        return by_masking(original, call, cuts, refusal)
