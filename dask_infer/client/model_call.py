"""One call of ``predict()``: its arguments, its model as recognised, its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dask_infer._dask import schema_columns
from dask_infer.batch.tensor.arrow import arrow_row_shape
from dask_infer.client.request import Request
from dask_infer.model.recognise import Recognised, recognise
from dask_infer.model.runtime.methods import check_method
from dask_infer.spec import ModelSpec
from dask_infer.spec.model_spec import Interface


@dataclass(frozen=True)
class ModelCall:
    """What the steps of a call look at."""

    request: Request
    recognised: Recognised
    #: Empty frame with the columns and dtypes of the rows.
    frame_meta: pd.DataFrame
    #: Row shapes of list columns, where a parquet schema states them.
    schema: Mapping[str, tuple[int | None, ...]]

    @property
    def spec(self) -> ModelSpec:
        """The model by its content."""
        return self.recognised.spec

    @property
    def is_estimator(self) -> bool:
        """Whether the model reads tables and describes its outputs itself."""
        return self.spec.kind == "estimator"

    @property
    def interface(self) -> Interface:
        """How the model will want its batches, as far as the client can see."""
        if self.is_estimator:
            return "frame"
        builds_module = self.spec.kind == "factory" and self.recognised.builds_module
        if self.spec.kind in ("callable", "factory") and not builds_module:
            return "numpy"
        return "tensor"

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the request, or of the model that the user holds."""
        own = self.recognised.tokenizer
        return own if self.request.tokenizer is None else self.request.tokenizer

    @property
    def directory_has_tokenizer(self) -> bool:
        """Whether the model is a directory with a tokenizer in it."""
        if self.spec.kind == "sentence-transformers":
            return True
        names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
        return self.spec.kind == "huggingface" and any(
            Path(str(self.spec.path), name).exists() for name in names
        )


def recognise_call(request: Request, expr: Any) -> ModelCall:
    """Recognise the model of a request over the rows of `expr`.

    Raises
    ------
    ModelLoadError
        If the model cannot be found, trusted, read or sent to workers.
    ValueError
        If it lacks the method asked for, or cannot run in the dtype asked for.
    """
    recognised = recognise(request.model, request.method)
    _check_model(request, recognised)
    types = schema_columns(expr)
    shapes = {name: arrow_row_shape(kind) for name, kind in types.items()}
    schema = {name: shape for name, shape in shapes.items() if shape}
    return ModelCall(request, recognised, expr._meta, schema)


def _check_model(request: Request, recognised: Recognised) -> None:
    """Refuse a method that the model lacks, and a dtype that it cannot run in."""
    spec = recognised.spec
    if request.dtype is not None and spec.kind in ("estimator", "callable", "onnx"):
        raise ValueError(
            f'dtype={request.dtype!r}: model "{spec.name}" is not a torch model, it '
            "runs in the dtypes it has; leave out dtype="
        )
    if spec.kind == "estimator":
        check_method(recognised.live, request.method or "predict")
    if spec.kind == "callable" and request.method is not None:
        check_method(request.model, request.method)
