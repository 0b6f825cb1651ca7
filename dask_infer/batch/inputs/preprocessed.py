"""What the user's `preprocess` returned, as the arguments of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from dask_infer.batch.inputs.batch import Batch
from dask_infer.batch.inputs.column_types import column_type_of
from dask_infer.batch.inputs.decided_dtypes import with_integers, with_lists
from dask_infer.batch.inputs.encode_options import EncodeOptions
from dask_infer.batch.inputs.resolve_inputs import resolve_inputs
from dask_infer.batch.outputs.fields import stacked
from dask_infer.batch.text.batch_padding import NOT_PADDED, Padding, padding_of
from dask_infer.errors import InputError
from dask_infer.spec import Inputs
from dask_infer.spec.model_spec import Interface


def resolve_again(inputs: Inputs, given: pd.DataFrame, interface: Interface) -> Inputs:
    """Return the inputs of a frame that `preprocess` returned.

    The columns that the user named if they are all there; else all columns.
    """
    wanted = [name for argument in inputs.arguments for name in argument.columns]
    keep = inputs.named and all(name in given.columns for name in wanted)
    columns = as_columns(inputs) if keep else None
    cast = any(argument.dtype is not None for argument in inputs.arguments)
    meta = given.iloc[:0]
    resolved = resolve_inputs(
        meta,
        columns,
        interface_hint="tensor" if cast else interface,
        shapes=_known_shapes(inputs, meta),
        tokenizer=inputs.tokenized,
    )
    integers = any(a.stacked and a.dtype == "int64" for a in inputs.arguments)
    resolved = with_integers(resolved, meta, True) if integers else resolved
    # What the model was asked about its lists holds for those that took their place.
    known = {(a.keyword, a.columns): a.dtype for a in inputs.arguments if not a.stacked}
    asked = {
        place: dtype
        for place, a in enumerate(resolved.arguments)
        for dtype in [known.get((a.keyword, a.columns))]
        if dtype is not None and a.shape != () and a.dtype in (None, "int64")
    }
    return with_lists(resolved, asked)


def _known_shapes(inputs: Inputs, meta: pd.DataFrame) -> dict[str, Any]:
    """Return the row shapes known at the call, of columns that may still hold lists."""
    return {
        argument.columns[0]: argument.shape
        for argument in inputs.arguments
        if argument.shape
        and None not in argument.shape
        and argument.columns[0] in meta.columns
        and column_type_of(meta[argument.columns[0]].dtype) in ("list", "object")
    }


def as_columns(inputs: Inputs) -> object:
    """Return the ``columns=`` that resolve to `inputs`."""
    elements = [
        list(argument.columns) if argument.stacked else argument.columns[0]
        for argument in inputs.arguments
    ]
    pairs = [a.columns[1:] for a in inputs.arguments if not a.stacked]
    elements += [name for pair in pairs for name in pair]
    keywords = [argument.keyword for argument in inputs.arguments]
    if any(keyword is not None for keyword in keywords):
        return dict(zip(keywords, elements, strict=True))
    return tuple(elements)


def table_of(inputs: Inputs, given: Any) -> Any:
    """Return what an estimator reads of what `preprocess` returned.

    Of a frame the columns that the user named or it was fitted on, if they are all
    there; else all of them. What it is stays what it is, but an estimator of texts
    gets the one column.
    """
    (argument,) = inputs.arguments
    wanted = list(argument.columns)
    if not isinstance(given, pd.DataFrame):
        return given
    # All columns of the frame are no choice: one that preprocess adds belongs to them.
    chosen = inputs.named or set(wanted) != set(inputs.columns)
    if chosen and all(name in given.columns for name in wanted):
        given = given[wanted]
    if argument.content != "text":
        return given
    if given.shape[1] != 1:
        raise InputError(
            f"preprocess returned a frame of {given.shape[1]} columns, and the "
            "estimator reads one text a row; return a Series"
        )
    return given.iloc[:, 0]


def add_tensors(batch: Batch, given: Any, options: EncodeOptions) -> None:
    """Add the tensors that `preprocess` returned: they go in as they are.

    Raises
    ------
    InputError
        Where they have another number of rows, or are no tensors.
    """
    if isinstance(given, Mapping):
        named = {str(k): _tensor_of(v, batch.rows, options) for k, v in given.items()}
        batch.add_tokens(named, _padding_in(named))
        return
    for value in given if isinstance(given, tuple) else (given,):
        batch.add(None, _tensor_of(value, batch.rows, options))


def _padding_in(kwargs: dict[str, Any]) -> Padding:
    mask = kwargs.get("attention_mask")
    if getattr(mask, "ndim", 0) != 2:
        return NOT_PADDED
    return padding_of(np.asarray(mask.cpu() if torch.is_tensor(mask) else mask) != 0)


def _tensor_of(value: Any, rows: int, options: EncodeOptions) -> Any:
    if value is None:
        raise InputError(
            "preprocess returned None; return a DataFrame, a tensor, or a tuple or "
            "dict of tensors"
        )
    value = stacked(value)
    if isinstance(value, pd.Series | list) and options.interface == "tensor":
        value = np.asarray(value)
    if isinstance(value, list) or np.ndim(value):
        check_count(len(value), rows)
    if isinstance(value, np.ndarray) and options.interface == "tensor":
        return _from_numpy(value, options)
    return _copied(value)


def _copied(value: Any) -> Any:
    """Copy what `preprocess` may write its next batch into."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray | pd.DataFrame | pd.Series):
        return value.copy()
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return value.copy() if hasattr(value, "toarray") else value  # a sparse matrix


def _from_numpy(values: np.ndarray[Any, Any], options: EncodeOptions) -> torch.Tensor:
    if values.dtype.kind not in "fiub":
        raise InputError(
            f"preprocess returned an array of {values.dtype}, which cannot become a "
            "tensor; return numbers"
        )
    native = values.dtype.newbyteorder("=")  # torch takes no other
    tensor = torch.from_numpy(np.array(values, native, order="C"))
    return tensor.to(options.floating) if tensor.is_floating_point() else tensor


def check_count(got: int, expected: int) -> None:
    """Raise `InputError` unless `preprocess` returned as many rows as it was given."""
    if got != expected:
        raise InputError(
            f"preprocess returned {got} rows for {expected}; return one row for each "
            "row of the frame, in the same order"
        )
