"""A `predict` call, checked and made a `Job`.

Runs on the client, when the call is built. Nothing here runs the model, the user's
functions or the graph: shapes are propagated, names and dtypes compared. Only when
everything is known to fit does the content store see the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from dask.utils import parse_timedelta

from dask_infer import config
from dask_infer._dask import arrow_schema
from dask_infer.errors import InputError, OutputError
from dask_infer.spec import (
    Argument,
    Blob,
    Code,
    Inputs,
    Job,
    Layout,
    ModelSpec,
    Outputs,
)

if TYPE_CHECKING:
    from dask_infer.model.recognise import Recognised
    from dask_infer.model.shapes import Example, Traced

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Request:
    """The arguments of one `predict` call; `DataFrameInfer.predict` explains them."""

    model: Any
    columns: Any = None
    output: Any = None
    keep: Any = True
    batch_size: Any = "auto"
    batch_tokens: Any = "auto"
    preprocess: Callable[..., Any] | None = None
    tokenizer: Any = None
    postprocess: Callable[..., Any] | None = None
    method: str | None = None
    call_kwargs: Mapping[str, Any] | None = None
    shapes: Mapping[str, Sequence[int]] | None = None
    dtype: str | None = None
    device: str = "auto"
    parallel: Any = "data"
    resources: Mapping[str, float] | None = None
    on_error: str = "raise"
    timeout: Any = None
    row_wise: bool = True
    meta: Any = None

    def __post_init__(self) -> None:
        _check_choices(self)

    def build(self, expr: Any) -> tuple[Job, tuple[Any, ...]]:
        """Return the job, and the columns of its result, for the rows of `expr`."""
        return _Builder(self, expr).build()


def _check_choices(request: Request) -> None:
    from dask_infer.device.names import check_device_name

    check_device_name(request.device)
    _check_count("batch_size", request.batch_size, "auto")
    _check_count("batch_tokens", request.batch_tokens, "auto", None)
    for name in ("preprocess", "postprocess"):
        function = getattr(request, name)
        if function is not None and not callable(function):
            raise ValueError(f"{name}={function!r} is not callable; pass a function")
    if request.dtype is not None and request.dtype not in DTYPES:
        raise ValueError(
            f"dtype={request.dtype!r}: pass one of {', '.join(map(repr, DTYPES))}"
        )
    if request.on_error != "raise":
        raise ValueError(
            f'on_error={request.on_error!r}: this version knows only on_error="raise"'
        )
    if request.parallel != "data" and request.parallel != Layout():
        raise ValueError(
            f'parallel={request.parallel!r}: this version knows only parallel="data"'
        )
    if request.resources is not None:
        raise ValueError(
            "resources= belongs to layouts that this version does not know; "
            'parallel="data" runs on every worker'
        )
    if not isinstance(request.row_wise, bool):
        raise ValueError(f"row_wise={request.row_wise!r}: pass True or False")


def _check_count(name: str, value: Any, *words: Any) -> None:
    if any(value is word or value == word for word in words):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        accepted = " or ".join(["a positive whole number", *map(repr, words)])
        raise ValueError(f"{name}={value!r}: pass {accepted}")


class _Builder:
    """The steps from a request to its job, each of which may refuse."""

    def __init__(self, request: Request, expr: Any) -> None:
        from dask_infer.model.recognise import recognise

        self.request = request
        self.expr = expr
        self.frame_meta: pd.DataFrame = expr._meta
        self.recognised: Recognised = recognise(request.model)
        self.spec: ModelSpec = self.recognised.spec

    def build(self) -> tuple[Job, tuple[Any, ...]]:
        kept = self._kept()
        inputs = self._inputs()
        outputs, inputs = self._outputs(inputs, kept)
        self.recognised.snapshot()
        request = self.request
        job = Job(
            model=self.spec,
            inputs=inputs,
            outputs=outputs,
            code=self._code(),
            method=request.method,
            batch_size=_or_configured(request.batch_size, "batch.rows", None),
            batch_tokens=_or_configured(request.batch_tokens, "batch.tokens", "auto"),
            dtype=request.dtype,
            device=request.device,
            timeout=None if request.timeout is None else _seconds(request.timeout),
            row_wise=request.row_wise,
        )
        return job, (*kept, *outputs.names)

    def _kept(self) -> tuple[Any, ...]:
        keep, columns = self.request.keep, list(self.frame_meta.columns)
        if isinstance(keep, bool):
            return tuple(columns) if keep else ()
        if isinstance(keep, str) or not isinstance(keep, Sequence):
            raise ValueError(f"keep={keep!r}: pass True, False or a list of columns")
        for name in keep:
            if name not in columns:
                raise InputError(
                    f'keep names column "{name}", which the frame does not have; it '
                    f"has {', '.join(map(str, columns))}"
                )
        return tuple(keep)

    # --- inputs ------------------------------------------------------------------

    def _interface(self) -> str:
        """How the model will want its batches, as far as the client can tell."""
        if self.spec.kind == "estimator":
            return "frame"
        if self.spec.kind == "factory" and self.recognised.builds_module:
            return "tensor"
        if self.spec.kind in ("callable", "factory"):
            return "numpy"
        return "tensor"

    def _tokenizes(self) -> bool:
        """Whether text goes through a tokenizer: the user's, or the model's own."""
        if self.request.tokenizer is not None:
            return True
        brings_one = self.spec.kind in ("huggingface", "sentence-transformers")
        return brings_one and self._reads_text()

    def _reads_text(self) -> bool:
        from dask_infer.batch.kinds import kind_of

        columns = self.request.columns
        named = columns.values() if isinstance(columns, Mapping) else columns
        if columns is None or isinstance(columns, str):
            named = list(self.frame_meta.columns) if columns is None else [columns]
        return any(
            kind_of(self.frame_meta[name].dtype) == "text"
            for name in named
            if isinstance(name, str) and name in self.frame_meta
        )

    def _inputs(self) -> Inputs:
        from dask_infer.batch.inputs import resolve_inputs

        return resolve_inputs(
            self.frame_meta,
            self.request.columns,
            interface_hint=self._interface(),
            shapes=self.request.shapes,
            schema=_schema_shapes(self.expr),
            tokenizer=self._tokenizes(),
            feature_names=_feature_names(self.recognised.live),
            preprocess=self.request.preprocess is not None,
        )

    # --- outputs -----------------------------------------------------------------

    def _outputs(self, inputs: Inputs, kept: tuple[Any, ...]) -> tuple[Outputs, Inputs]:
        from dask_infer.batch.outputs import (
            outputs_from_estimator,
            outputs_from_meta,
            resolve_outputs,
        )
        from dask_infer.model.shapes import CannotTrace

        request = self.request
        if request.meta is not None:
            outputs = outputs_from_meta(request.meta, request.output, kept)
            inputs = self._checked_against_model(inputs)
        elif self.spec.kind == "estimator":
            outputs = outputs_from_estimator(self._described(), request.output, kept)
        else:
            try:
                traced = self._trace(inputs)
            except CannotTrace as error:
                raise _refusal(error, self.spec) from error
            inputs = self._with_integers(inputs, traced)
            outputs = resolve_outputs(
                traced.output,
                rows=traced.rows,
                tokens=traced.tokens,
                output=request.output,
                kept=kept,
                text=_is_padded(inputs),
            )
        return outputs, inputs

    def _checked_against_model(self, inputs: Inputs) -> Inputs:
        """Refuse wrong shapes and arity where they can be seen in spite of `meta=`."""
        from dask_infer.model.shapes import ArityMismatch, CannotTrace, ShapeMismatch

        changes = self.request.preprocess is not None
        if self._interface() != "tensor" or self.spec.kind == "factory" or changes:
            return inputs
        try:
            return self._with_integers(inputs, self._trace(inputs))
        except (ArityMismatch, ShapeMismatch) as error:
            raise _refusal(error, self.spec) from error
        except CannotTrace:
            return inputs

    def _trace(self, inputs: Inputs) -> Traced:
        from dask_infer.model.shapes import propagate

        args, kwargs = _examples(inputs, self.frame_meta, self.request.tokenizer)
        return propagate(
            self.spec,
            self.recognised.live,
            args,
            kwargs,
            method=self.request.method,
            call_kwargs=self.request.call_kwargs,
            dtype=self.request.dtype,
        )

    def _with_integers(self, inputs: Inputs, traced: Traced) -> Inputs:
        from dask_infer.batch.inputs import with_integers

        return with_integers(inputs, self.frame_meta, traced.as_integers)

    def _described(self) -> Any:
        from dask_infer.model.estimator_outputs import estimator_outputs
        from dask_infer.model.shapes import CannotTrace

        method = self.request.method or "predict"
        try:
            return estimator_outputs(self.recognised.live, method)
        except CannotTrace as error:
            raise _refusal(error, self.spec) from error

    # --- code --------------------------------------------------------------------

    def _code(self) -> Blob:
        from dask_infer.model.store import pickle_held

        request = self.request
        code = Code(
            preprocess=request.preprocess,
            postprocess=request.postprocess,
            tokenizer=request.tokenizer,
            call_kwargs=dict(request.call_kwargs or {}),
        )
        return pickle_held(code)


def _or_configured(value: Any, key: str, automatic: Any) -> Any:
    """Return what the call says, else what the configuration does."""
    if value == "auto":
        value = config.get(key)
    return automatic if value == "auto" else value


def _seconds(timeout: Any) -> float:
    try:
        seconds = float(parse_timedelta(timeout))
    except (ValueError, TypeError, KeyError):
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f'timeout={timeout!r}: pass seconds, or a text like "30s"')
    return seconds


def _schema_shapes(expr: Any) -> dict[str, tuple[int | None, ...]]:
    """Row shapes of list columns that the parquet schema below `expr` tells."""
    from dask_infer.batch.lists import arrow_row_shape

    schema = arrow_schema(expr)
    if schema is None:
        return {}
    shapes = {name: arrow_row_shape(schema.field(name).type) for name in schema.names}
    return {name: shape for name, shape in shapes.items() if shape}


def _feature_names(live: Any) -> list[str] | None:
    names = getattr(live, "feature_names_in_", None)
    return None if names is None else list(names)


def _refusal(error: Exception, spec: ModelSpec) -> Exception:
    """Return the public error for shapes that do not fit or cannot be found."""
    from dask_infer.model.shapes import ArityMismatch, ShapeMismatch

    if isinstance(error, (ArityMismatch, ShapeMismatch)):
        return InputError(str(error))
    reason = getattr(error, "reason", None) or error
    return OutputError(
        f'the output columns of model "{spec.name}" cannot be known before it runs: '
        f'{reason}; pass meta=, such as meta="float32" or meta={{"score": "float32"}}'
    )


def _is_padded(inputs: Inputs) -> bool:
    ragged = any(a.shape and a.shape[0] is None for a in inputs.arguments)
    return inputs.tokenized or ragged


def _examples(
    inputs: Inputs, frame_meta: pd.DataFrame, tokenizer: Any
) -> tuple[list[Example], dict[str, Example]]:
    """One row of each argument, as shape propagation wants it."""
    from dask_infer.model.shapes import Example

    if inputs.tokenized:
        names = getattr(tokenizer, "model_input_names", TOKENIZED)
        ids = Example("int64", (None,))
        return [], {
            names[0]: ids,
            **{n: replace(ids, optional=True) for n in names[1:]},
        }
    args: list[Example] = []
    kwargs: dict[str, Example] = {}
    for argument in inputs.arguments:
        example = _example(argument, frame_meta)
        if argument.keyword is None:
            args.append(example)
        else:
            kwargs[argument.keyword] = example
    return args, kwargs


#: What tokenizers return where they do not say.
TOKENIZED = ("input_ids", "attention_mask", "token_type_ids")


def _example(argument: Argument, frame_meta: pd.DataFrame) -> Example:
    from dask_infer.batch.inputs import all_integers
    from dask_infer.model.shapes import CannotTrace, Example

    name = argument.columns[0]
    if argument.stacked:
        return Example(
            argument.dtype or "floating",
            (len(argument.columns),),
            integers=all_integers(frame_meta, argument),
        )
    if argument.shape is None:
        raise CannotTrace(
            f'the row shape of column "{name}" is known only once it is read (or pass '
            f'shapes={{"{name}": (...)}})'
        )
    return Example(argument.dtype or "floating", argument.shape)
