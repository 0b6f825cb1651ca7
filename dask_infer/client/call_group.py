"""The workers that hold the model, where the partition's own process does not."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from dask_infer import config
from dask_infer.client.examples import examples, split_keys
from dask_infer.client.model_call import ModelCall
from dask_infer.errors import PlacementError
from dask_infer.model.runtime.stage_model import chain_blob, read_chain
from dask_infer.model.shapes.trace_errors import CannotTrace, Example
from dask_infer.model.split_refusals import CannotSplit
from dask_infer.plan.units import count, in_bytes
from dask_infer.spec import (
    ArgumentKey,
    AutoSpec,
    Blob,
    ChosenLayout,
    GroupSpec,
    GroupTimeouts,
    Inputs,
    LayerGroups,
    Layout,
)

#: Bytes of a model that every process with torch can hold: it need not be split, which
#: may take seconds.
SMALL = 64 * 2**20


def call_layout(call: ModelCall, inputs: Inputs) -> ChosenLayout:
    """Return what a group of workers holds, or each process sweeps.

    None where every process holds the model, or a layout is yet to be chosen. A layout
    in parts splits the model here, without its weights.

    Raises
    ------
    PlacementError
        If the model cannot be split.
    ValueError
        If the layout does not go with other arguments.
    """
    request, layout = call.request, call.request.layout
    if request.auto or (layout.is_local and not request.resources):
        return None
    if layout.sweep:
        return LayerGroups(_chain(call, inputs), layout.stages)
    chain = None
    if layout.shards != 1:
        chain = _in_shards(call, inputs)
    elif layout.stages != 1:
        chain = _chain(call, inputs)
    return _group(call, layout, chain)


def auto_spec(call: ModelCall, inputs: Inputs) -> AutoSpec | None:
    """Return what a layout is chosen from, with the model split where it can be.

    None where the call says which one.
    """
    if not call.request.auto:
        return None
    chain, divides = None, False
    uncut = "its layers are not known before it is loaded"
    if call.spec.nbytes:
        uncut = f"{in_bytes(call.spec.nbytes)}: below {in_bytes(SMALL)} it is not cut"
    # The bytes of a factory's model may be unknown before it is built.
    if call.spec.nbytes > SMALL or (call.spec.weights and not call.spec.nbytes):
        try:
            chain, uncut = _chain(call, inputs), ""
        except (CannotTrace, PlacementError, ValueError) as error:
            uncut = str(error).partition(";")[0]
            if isinstance(error, CannotSplit):
                with contextlib.suppress(CannotSplit):
                    divides = bool(_axes_of_uncut(call, error))
    group = _group(call, Layout(), chain)
    return AutoSpec(group, uncut, divides, text=inputs.tokenized)


def _group(call: ModelCall, layout: Layout, chain: Blob | None) -> GroupSpec:
    request = call.request
    return GroupSpec(
        call.spec,
        layout,
        tuple(sorted((str(k), float(v)) for k, v in (request.resources or {}).items())),
        dtype=request.dtype,
        device=request.device,
        method=request.method,
        timeout=request.timeout,
        chain=chain,
        timeouts=GroupTimeouts(
            grace=config.get_seconds("placement.grace") or 0.0,
            idle=config.get_seconds("stage.idle-timeout") or 0.0,
            stall=config.get_seconds("stage.stall-timeout") or 0.0,
        ),
    )


def _in_shards(call: ModelCall, inputs: Inputs) -> Blob | None:
    """Return the chain of the model's blocks; None where shards alone divide it."""
    chain: Blob | None = None
    try:
        chain = _chain(call, inputs)
        axes = read_chain(chain).axes
    except CannotSplit as refusal:
        if call.request.layout.stages != 1:
            raise
        axes = _axes_of_uncut(call, refusal)
    if not axes:
        raise CannotSplit(
            call.spec.name,
            "it has no weights that shards could divide: those of nn.Linear, "
            "nn.Embedding and convolutions",
            'use parallel="data", or stages=',
        )
    return chain


def _axes_of_uncut(call: ModelCall, refusal: CannotSplit) -> Mapping[str, int]:
    """Return what shards divide of a module that cannot be cut into stages."""
    from dask_infer.model.split.stage_loader import open_uncut

    try:
        return open_uncut(call.spec, call.recognised.live, call.request.dtype).axes
    except CannotSplit:
        raise refusal from None


def _chain(call: ModelCall, inputs: Inputs) -> Blob:
    """Split the model and put the chain of its blocks where workers find it."""
    request, stages = call.request, call.request.layout.stages
    parts = "stages" if request.layout.shards == 1 else "shards"
    if request.method is not None:
        raise ValueError(
            f"method={request.method!r}: only the model's own call can be split into "
            f"{parts}; leave out method= or parallel="
        )
    if request.dtype == "int8":
        raise ValueError(
            f'dtype="int8": {parts} run in floating dtypes only; pass "bfloat16", or '
            "leave out parallel="
        )
    blob = split_call(call, examples(call, inputs))
    blocks = len(read_chain(blob).blocks)
    if isinstance(stages, int) and stages > blocks:
        raise ValueError(
            f'model "{call.spec.name}" has {count(blocks, "block")} that a stage can '
            f"begin with: pass at most stages={blocks}"
        )
    return blob


def split_call(call: ModelCall, examples: Mapping[ArgumentKey, Example]) -> Blob:
    """Return the model's chain for arguments like these; equal calls share it."""
    for refused, error in call.refused:
        if refused == examples:
            raise error  # trying took seconds
    args, kwargs = split_keys(examples)
    stages = call.request.layout.stages
    try:
        return chain_blob(
            call.spec,
            call.recognised.live,
            args,
            kwargs,
            cuts=stages if isinstance(stages, tuple) else None,
            call_kwargs=call.request.call_kwargs,
            dtype=call.request.dtype,
        )
    except CannotSplit as error:
        call.refused.append((examples, error))
        raise
