"""A model split into a chain of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dask_infer.model.formats.exported_program import check_dtype
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import parse_dtype
from dask_infer.model.shapes.call_arguments import by_key
from dask_infer.model.shapes.sandbox import sandbox
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.export.glue import split_glue
from dask_infer.model.split.export.split_program import split_program
from dask_infer.model.split.export.split_source import SplitSource
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
        If it cannot be split exactly; names the cause, the line and the remedy.
    """
    examples = by_key(args, kwargs)
    with sandbox():
        wanted = parse_dtype(dtype)
        model = format_of(spec).open_to_split(spec, live)
        if not isinstance(model, nn.Module):
            check_dtype(spec, model, wanted)
            return split_program(spec, model, examples, cuts)
        source = SplitSource.of(spec, model, wanted)
        return split_glue(source.called(examples, dict(call_kwargs or {})), cuts)
