"""One call of ``predict()``: its arguments, its model as recognised, its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from dask_infer._dask import schema_columns
from dask_infer.batch.tensor.arrow import arrow_row_shape
from dask_infer.client.request import Request
from dask_infer.model.formats.format import Format, Recognised
from dask_infer.model.recognise import recognise
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.tokenizers import check_tokenizer
from dask_infer.model.shapes.trace_errors import Example
from dask_infer.spec import ArgumentKey, ModelSpec


@dataclass(frozen=True)
class InputRows:
    """What is known of the rows that a model gets."""

    #: Empty frame with their columns and dtypes.
    meta: pd.DataFrame
    #: Row shapes of list columns, where a parquet schema states them.
    schema: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, expr: Any) -> InputRows:
        """Return what an expression knows of its rows."""
        types = schema_columns(expr)
        shapes = {name: arrow_row_shape(kind) for name, kind in types.items()}
        return cls(expr._meta, {name: shape for name, shape in shapes.items() if shape})


@dataclass(frozen=True)
class ModelCall:
    """What the steps of a call look at."""

    request: Request
    recognised: Recognised
    rows: InputRows
    #: Arguments for which the model cannot be split, each with the error.
    refused: list[tuple[Mapping[ArgumentKey, Example], Exception]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    @property
    def spec(self) -> ModelSpec:
        """The model by its content."""
        return self.recognised.spec

    @property
    def format(self) -> Format:
        """The format of the model, which knows what its models need."""
        return format_of(self.spec)

    @property
    def is_divided(self) -> bool:
        """Whether the model may run in parts: stages, shards or groups of a sweep."""
        layout = self.request.layout
        parts = layout.stages != 1 or layout.shards != 1 or layout.sweep
        return parts or self.request.auto

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the request, or of the model that the user holds."""
        own, given = self.recognised.tokenizer, self.request.tokenizer
        return own if given is None else check_tokenizer(given)


def recognise_call(request: Request, rows: InputRows) -> ModelCall:
    """Recognise the model of a request over `rows`.

    Raises
    ------
    ModelLoadError
        If the model cannot be found, trusted, read or sent to workers.
    ValueError
        If it lacks the method asked for, or cannot run in the dtype asked for.
    """
    call = ModelCall(request, recognise(request.model, request.method), rows)
    if request.dtype is not None and not call.format.has_dtype:
        raise ValueError(
            f'dtype={request.dtype!r}: model "{call.spec.name}" is not a torch model, '
            "it runs in the dtypes it has; leave out dtype="
        )
    call.format.check_method(call.recognised.live, request.method)
    return call
