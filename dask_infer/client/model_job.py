"""A request of one model made a `Job`, on the client, when the call is built.

The model, the user's functions and the graph do not run: shapes are propagated, names
and dtypes compared. The model is written to the content store last, once everything is
known to fit.
"""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from typing import Any

from dask.tokenize import tokenize

from dask_infer import config
from dask_infer.batch.outputs.resolve_outputs import check_names
from dask_infer.client.call_group import auto_spec, call_layout
from dask_infer.client.call_inputs import call_inputs
from dask_infer.client.call_outputs import call_outputs
from dask_infer.client.model_call import InputRows, ModelCall, recognise_call
from dask_infer.client.request import Request, check_count
from dask_infer.model.store.blob_store import PendingBlob
from dask_infer.spec import Blob, Job, Outputs, UserCode


def build_model_job(
    request: Request,
    rows: InputRows,
    kept: tuple[Any, ...] = (),
    outputs: Outputs | None = None,
) -> Job:
    """Return the job of one model.

    Parameters
    ----------
    kept
        Input columns that stand beside its outputs.
    outputs
        What it returns, where that is known: of a function of this package, whose rows
        are not counted as those of a model.
    """
    call = recognise_call(request, rows)
    inputs, undecided, counted = call_inputs(call), None, outputs is None
    if outputs is None:
        outputs, inputs, undecided = call_outputs(call, inputs, kept)
    check_names(outputs, kept, quarantine=request.on_error == "quarantine")
    job = Job(
        model=call.spec,
        inputs=inputs,
        outputs=outputs,
        code=_code(call),
        method=request.method,
        batch_size=_batch_size(request),
        batch_tokens=_or_configured(request.batch_tokens, "batch.tokens", "auto"),
        dtype=request.dtype,
        device=request.device,
        timeout=request.timeout,
        on_error=request.on_error,
        max_errors=_configured_fraction("errors.max-fraction"),
        row_wise=request.row_wise,
        undecided=undecided,
        auto=auto_spec(call, inputs),
    ).in_layout(call_layout(call, inputs))
    call.recognised.snapshot()
    return replace(job, token=tokenize(job)[:8]) if counted else job


def _code(call: ModelCall) -> Blob:
    request = call.request
    code = UserCode(
        preprocess=request.preprocess,
        postprocess=request.postprocess,
        tokenizer=call.tokenizer,
        call_kwargs=dict(request.call_kwargs or {}),
    )
    return PendingBlob(code, subject="the call").write()


def _batch_size(request: Request) -> int | None:
    """Return the most rows of a batch; where there are stages it is a microbatch."""
    rows = _or_configured(request.batch_size, "batch.rows", None)
    limits = [n for n in (rows, request.layout.microbatch) if isinstance(n, int)]
    return min(limits, default=None)


def _or_configured(value: Any, key: str, automatic: Any) -> Any:
    """Return what the call says, else what the configuration does."""
    if value == "auto":
        value = config.get(key)
        check_count(f"infer.{key}", value, "auto", None)
    if isinstance(value, Integral):
        return int(value)
    return automatic if value == "auto" else value


def _configured_fraction(key: str) -> float:
    value = config.get(key)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ValueError(f"infer.{key}: {value!r}; set a number from 0 to 1")
    return float(value)
