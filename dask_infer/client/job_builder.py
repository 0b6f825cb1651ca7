"""A request made a `Job`: the model recognised, inputs and outputs resolved.

Runs on the client, when the call is built. Nothing here runs the model, the user's
functions or the graph: shapes are propagated, names and dtypes compared. Only when
everything is known to fit does the content store see the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pandas.api.types import is_list_like

from dask_infer import config
from dask_infer._dask import schema_columns
from dask_infer.client.examples import METAS, TOKENIZED, Tracer, refusal
from dask_infer.client.request import Request, layout_of, resources_of, seconds
from dask_infer.errors import InputError, OutputError
from dask_infer.spec import (
    Blob,
    Code,
    Fitted,
    GroupSpec,
    Inputs,
    Job,
    Layout,
    ModelSpec,
    Outputs,
    Patience,
    Undecided,
)

if TYPE_CHECKING:
    from dask_infer.model.recognise import Recognised

#: How arguments begin that no model takes as text: its own tokens, images, sounds.
TENSORS = (*TOKENIZED, "input_", "inputs_", "pixel_", "position_")


def build_job(request: Request, expr: Any) -> tuple[Job, tuple[Any, ...]]:
    """Return the job, and the columns of its result, for the rows of `expr`."""
    return JobBuilder(request, expr).build()


class JobBuilder:
    """The steps from a request to its job, each of which may refuse."""

    def __init__(self, request: Request, expr: Any) -> None:
        from dask_infer.model.recognise import recognise

        self.request = request
        self.expr = expr
        self.frame_meta: pd.DataFrame = expr._meta
        self.recognised: Recognised = recognise(request.model, request.method)
        if request.tokenizer is None and self.recognised.tokenizer is not None:
            self.request = request = replace(
                request, tokenizer=self.recognised.tokenizer
            )
        self.spec: ModelSpec = self.recognised.spec
        self.schema = _schema_shapes(expr)
        self.tracer = Tracer(
            request, self.recognised, self.frame_meta, self._interface()
        )

    def build(self) -> tuple[Job, tuple[Any, ...]]:
        """Return the job and the columns of its result."""
        from dask_infer.batch.outputs.resolve_outputs import check_names

        self._check_model()
        kept = self._kept()
        inputs, undecided = self._inputs(), None
        if self.request.meta is None:
            outputs, inputs = self._traced_outputs(inputs, kept)
        else:
            outputs = self._declared_outputs(kept)
            inputs, undecided = self._unlooked(inputs)
        check_names(outputs, kept, quarantine=self.request.on_error == "quarantine")
        self.recognised.snapshot()
        request = self.request
        job = Job(
            model=self.spec,
            inputs=inputs,
            outputs=outputs,
            code=self._code(),
            method=request.method,
            batch_size=self._rows(),
            batch_tokens=_or_configured(request.batch_tokens, "batch.tokens", "auto"),
            dtype=request.dtype,
            device=request.device,
            timeout=None if request.timeout is None else seconds(request.timeout),
            on_error=request.on_error,
            max_errors=_share("errors.max-fraction"),
            row_wise=request.row_wise,
            undecided=undecided,
            group=self._group(inputs),
        )
        return job, (*kept, *job.names)

    def _check_model(self) -> None:
        """Refuse a method that the model lacks, and a dtype where it has none."""
        from dask_infer.model.runtime.methods import check_method

        method, dtype, kind = self.request.method, self.request.dtype, self.spec.kind
        if dtype is not None and kind in ("estimator", "callable", "onnx"):
            raise ValueError(
                f'dtype={dtype!r}: model "{self.spec.name}" is no torch model, it runs '
                "in the dtypes it has; leave out dtype="
            )
        if kind == "estimator":
            check_method(self.recognised.live, method or "predict")
        if kind == "callable" and method is not None:
            check_method(self.request.model, method)

    def _kept(self) -> tuple[Any, ...]:
        labels = self.frame_meta.columns
        if labels.has_duplicates:
            twice = labels[labels.duplicated()][0]
            raise InputError(f'two columns are named "{twice}"; rename one')
        keep, columns = self.request.keep, list(self.frame_meta.columns)
        if isinstance(keep, bool):
            return tuple(columns) if keep else ()
        if isinstance(keep, Mapping) or not is_list_like(keep, allow_sets=False):
            raise ValueError(f"keep={keep!r}: pass True, False or a list of columns")
        for name in keep:
            if name not in columns:
                raise InputError(
                    f'keep names column "{name}", which the frame does not have; it '
                    f"has {', '.join(map(str, columns))}"
                )
        kept = tuple(keep)
        for name in kept:
            if kept.count(name) > 1:
                raise ValueError(f'keep names column "{name}" twice; name it once')
        return kept

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
        return brings_tokenizer(self.spec) and self._reads_text()

    def _reads_text(self) -> bool:
        from dask_infer.batch.inputs.column_types import column_type_of

        columns = self.request.columns
        named = columns.values() if isinstance(columns, Mapping) else columns
        if columns is None or isinstance(columns, str):
            named = list(self.frame_meta.columns) if columns is None else [columns]
        kinds = {
            name: column_type_of(self.frame_meta[name].dtype)
            for name in named
            if isinstance(name, str) and name in self.frame_meta
        }
        objects = {name for name, kind in kinds.items() if kind == "object"}
        return "text" in kinds.values() or bool(objects & self._objects_as_text())

    def _objects_as_text(self) -> set[str]:
        """Columns that are text for a model of texts where they hold objects."""
        columns = self.request.columns
        if self.request.preprocess is not None:
            return set()
        if isinstance(columns, Mapping):
            named = [v for k, v in columns.items() if not str(k).startswith(TENSORS)]
        elif columns is None and len(self.frame_meta.columns) == 1:
            named = list(self.frame_meta.columns)
        else:
            named = list(columns) if isinstance(columns, tuple) else [columns]
        told = {*(self.request.shapes or {}), *self.schema}
        return {name for name in named if isinstance(name, str)} - told

    def _inputs(self) -> Inputs:
        from dask_infer.batch.inputs.resolve_inputs import resolve_inputs

        inputs = resolve_inputs(
            self.frame_meta,
            self.request.columns,
            interface_hint=self._interface(),
            shapes=self.request.shapes,
            schema=self.schema,
            tokenizer=self._tokenizes(),
            feature_names=self._feature_names(),
            fitted=self._fitted(),
            preprocess=self.request.preprocess is not None,
        )
        self._check_arity(inputs)
        return inputs

    def _check_arity(self, inputs: Inputs) -> None:
        """Refuse arguments that a function does not take."""
        from dask_infer.model.shapes.trace_errors import ArityMismatch, check_arity

        request = self.request
        given = inputs.tokenized or request.preprocess is not None
        if given or self.spec.kind != "callable":
            return
        model, method = request.model, request.method
        try:
            signature = inspect.signature(getattr(model, method) if method else model)
        except (TypeError, ValueError):
            return
        arguments = inputs.arguments
        places = range(sum(a.keyword is None for a in arguments))
        keys = [*places, *(a.keyword for a in arguments if a.keyword is not None)]
        name, extra = self.spec.name, request.call_kwargs or {}
        try:
            check_arity(name, method or name, signature, keys, extra)
        except ArityMismatch as error:
            raise InputError(str(error)) from None

    def _feature_names(self) -> list[Any] | None:
        """Return the columns that an estimator was fitted on."""
        from dask_infer.model.formats.boosting import feature_names

        if self.spec.kind != "estimator":
            return None
        return feature_names(self.recognised.live, self.frame_meta.columns)

    def _fitted(self) -> Fitted | None:
        from dask_infer.model.shapes.fitted import fitted_on

        is_estimator = self.spec.kind == "estimator"
        return fitted_on(self.recognised.live) if is_estimator else None

    # --- outputs -----------------------------------------------------------------

    def _declared_outputs(self, kept: tuple[Any, ...]) -> Outputs:
        from dask_infer.batch.outputs.resolve_outputs import outputs_from_meta

        meta, output = self.request.meta, self.request.output
        return outputs_from_meta(meta, output, kept, listed=self._lists_fields())

    def _traced_outputs(
        self, inputs: Inputs, kept: tuple[Any, ...]
    ) -> tuple[Outputs, Inputs]:
        request = self.request
        try:
            return self._found_outputs(inputs, kept)
        except OutputError as error:
            if request.postprocess is None or "pass meta=" in str(error):
                raise
            raise OutputError(
                f"{error}; postprocess= may change the output: pass meta=, such as "
                f"{METAS}"
            ) from error

    def _found_outputs(
        self, inputs: Inputs, kept: tuple[Any, ...]
    ) -> tuple[Outputs, Inputs]:
        """Return what the model itself tells of its outputs."""
        from dask_infer.batch.outputs.resolve_outputs import (
            outputs_from_estimator,
            resolve_outputs,
        )
        from dask_infer.model.shapes.propagate import CannotTrace

        output = self.request.output
        if self.spec.kind == "estimator":
            return outputs_from_estimator(self._described(inputs), output, kept), inputs
        try:
            traced = self.tracer.trace(inputs)
        except CannotTrace as error:
            changes = self.request.preprocess is not None
            raise refusal(error, self.spec, preprocess=changes) from error
        outputs = resolve_outputs(
            traced.output,
            rows=traced.rows,
            tokens=traced.tokens,
            output=output,
            kept=kept,
            text=traced.ragged or _is_padded(inputs),
            uneven=traced.uneven,
        )
        return outputs, self.tracer.with_integers(inputs, traced)

    def _unlooked(self, inputs: Inputs) -> tuple[Inputs, Undecided | None]:
        """Refuse what can be seen without running the model, which `meta=` forbids.

        Returns what only running it on shapes would tell: workers do. A group has no
        worker to ask before the first batch, and its stages are split here anyway.
        """
        from dask_infer.model.shapes.propagate import (
            ArityMismatch,
            CannotTrace,
            ShapeMismatch,
        )

        if self._interface() != "tensor":
            return inputs, None
        layout = layout_of(self.request.parallel)
        grouped = not layout.is_local or bool(resources_of(self.request.resources))
        files = self.spec.kind in ("onnx", "sentence-transformers")
        try:
            if files or (grouped and self.tracer.undecided(inputs)):
                return self.tracer.with_integers(
                    inputs, self.tracer.trace(inputs)
                ), None
            self.tracer.check(inputs)
            return inputs, self.tracer.undecided(inputs)
        except CannotTrace as error:
            refused = isinstance(error, (ArityMismatch, ShapeMismatch))
            if refused and self.request.preprocess is None:
                raise refusal(error, self.spec) from error
            return inputs, None

    def _lists_fields(self) -> bool:
        """Whether an estimator returns a list of arrays, one a target."""
        try:
            return self.spec.kind == "estimator" and len(self._described()) > 1
        except OutputError:
            return False

    def _described(self, inputs: Inputs | None = None) -> Any:
        from dask_infer.model.shapes.estimator_outputs import estimator_outputs
        from dask_infer.model.shapes.propagate import CannotTrace

        method = self.request.method or "predict"
        try:
            return estimator_outputs(
                self.recognised.live,
                method,
                call_kwargs=self.request.call_kwargs,
                given=self._given(inputs),
            )
        except CannotTrace as error:
            raise refusal(error, self.spec) from error

    def _given(self, inputs: Inputs | None) -> dict[Any, str] | None:
        """Return the dtypes of the columns that an estimator gets."""
        from dask_infer.batch.inputs.column_types import column_type_of
        from dask_infer.batch.inputs.plain_columns import plain_frame

        if inputs is None or self.request.preprocess is not None:
            return None
        names = [name for a in inputs.arguments for name in a.columns]
        frame = self.frame_meta[names]
        known = {
            name: dtype.name if isinstance(dtype, np.dtype) else "object"
            for name, dtype in plain_frame(frame).dtypes.items()
        }
        texts = [name for name in names if column_type_of(frame[name].dtype) == "text"]
        return {**known, **dict.fromkeys(texts, "string")}

    # --- layout ------------------------------------------------------------------

    def _rows(self) -> int | None:
        """Return the most rows of a batch; a microbatch of the layout is one."""
        rows = _or_configured(self.request.batch_size, "batch.rows", None)
        microbatch = layout_of(self.request.parallel).microbatch
        told = [n for n in (rows, microbatch) if isinstance(n, int)]
        return min(told, default=None)

    def _group(self, inputs: Inputs) -> GroupSpec | None:
        """Return what other workers hold; None where every process holds the model."""
        request = self.request
        layout, resources = layout_of(request.parallel), resources_of(request.resources)
        if layout.is_local and not resources:
            return None
        return GroupSpec(
            self.spec,
            layout,
            resources,
            dtype=request.dtype,
            device=request.device,
            method=request.method,
            timeout=None if request.timeout is None else seconds(request.timeout),
            chain=None if layout.stages == 1 else self._chain(inputs, layout),
            patience=Patience(
                grace=config.get_seconds("placement.grace") or 0.0,
                idle=config.get_seconds("stage.idle-timeout") or 0.0,
                stall=config.get_seconds("stage.stall-timeout") or 0.0,
            ),
        )

    def _chain(self, inputs: Inputs, layout: Layout) -> Blob:
        """Split the model, without its weights, and hold the chain for the workers."""
        from dask_infer.model.runtime.stage_model import chain_blob, read_chain

        request, stages = self.request, layout.stages
        if request.method is not None:
            raise ValueError(
                f"method={request.method!r}: only the model's own call can be split "
                "into stages; leave out method= or parallel="
            )
        if request.dtype == "int8":
            raise ValueError(
                'dtype="int8": stages run in floating dtypes only; pass "bfloat16", or '
                'leave out parallel="pipeline"'
            )
        args, kwargs = self.tracer.examples(inputs)
        cuts = stages if isinstance(stages, tuple) else None
        options = {"call_kwargs": request.call_kwargs, "dtype": request.dtype}
        blob = chain_blob(
            self.spec, self.recognised.live, args, kwargs, cuts=cuts, **options
        )
        blocks = len(read_chain(blob).blocks)
        if isinstance(stages, int) and stages > blocks:
            raise ValueError(
                f'model "{self.spec.name}" has {blocks} blocks that a stage can begin '
                f"with: pass at most stages={blocks}"
            )
        return blob

    # --- code --------------------------------------------------------------------

    def _code(self) -> Blob:
        from dask_infer.model.store.blob_store import pickle_held

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
    if isinstance(value, Integral):
        return int(value)
    return automatic if value == "auto" else value


def _share(key: str) -> float:
    """Return a configured part of a whole."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        value = -1
    if not 0 <= value <= 1:
        raise ValueError(f"infer.{key}: {config.get(key)!r}; set a number from 0 to 1")
    return float(value)


def _schema_shapes(expr: Any) -> dict[str, tuple[int | None, ...]]:
    """Row shapes of list columns that the parquet schema below `expr` tells."""
    from dask_infer.batch.tensor.lists import arrow_row_shape

    types = schema_columns(expr)
    shapes = {name: arrow_row_shape(kind) for name, kind in types.items()}
    return {name: shape for name, shape in shapes.items() if shape}


def _is_padded(inputs: Inputs) -> bool:
    ragged = any(a.shape is None or None in a.shape for a in inputs.arguments)
    return inputs.tokenized or ragged


def brings_tokenizer(spec: ModelSpec) -> bool:
    """Whether the model is a directory with a tokenizer of its own."""
    if spec.kind == "sentence-transformers":
        return True
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    return spec.kind == "huggingface" and any(
        Path(str(spec.path), name).exists() for name in names
    )
