"""The promised columns: names, dtypes and shapes, before anything runs.

Runs on the client. What a model returns is known from propagated shapes, from an
estimator's attributes, or from ``meta=``.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from dask_infer.batch.outputs.column_dtypes import dtype_name
from dask_infer.batch.outputs.fields import traced_fields
from dask_infer.batch.outputs.naming import Naming, name_meta_columns, name_values
from dask_infer.batch.outputs.parse_meta import OutputValue, parse_dtype, parse_meta
from dask_infer.batch.tensor.rows import Shape
from dask_infer.errors import OutputError
from dask_infer.spec import ERROR_COLUMN, Outputs


def resolve_outputs(
    traced_output: Any,
    *,
    rows: int,
    tokens: int | None,
    output: Naming,
    kept: Iterable[Hashable],
    text: bool,
    uneven: Collection[int] = (),
) -> Outputs:
    """Return the columns of a model whose output was found by propagating shapes.

    Parameters
    ----------
    traced_output
        The model's output, holding fake or meta tensors.
    rows, tokens
        Length of the batch axis and of the padded axis in `traced_output`.
    output
        The user's names: see the reference of ``predict``.
    kept
        Input columns carried into the result.
    text
        Whether the inputs were tokenized, so that there is a padded axis.
    uneven
        Tensors, by their `id`, whose other axes follow the size of the batch.

    Raises
    ------
    OutputError
        If the output holds no tensor, not a row for each row, or not what `output`
        names.
    ValueError
        If names collide.
    """
    padded = tokens if text else None
    found = [
        _traced_value(key, value, padded, id(value) in uneven)
        for key, value in traced_fields(traced_output, rows)
        if torch.is_tensor(value) or isinstance(value, np.ndarray)
    ]
    if not found:
        kind = f"of type {type(traced_output).__name__}"
        if torch.is_tensor(traced_output):
            kind = f"a tensor of shape {tuple(traced_output.shape)}"
        raise OutputError(
            f"the model returns no tensor with an entry a row (its output is {kind}); "
            "return one, or pass postprocess= and meta="
        )
    columns = name_values(found, output, rows)
    listed = any(isinstance(column.field, int) for column in columns)
    return check_names(Outputs(columns, listed=listed), kept)


def outputs_from_estimator(
    described: Sequence[tuple[str | None, Any, tuple[int, ...]]],
    output: Naming,
    kept: Iterable[Hashable],
) -> Outputs:
    """Return the columns of an estimator, whose attributes say what it returns.

    Parameters
    ----------
    described
        A (name or None, dtype, shape of one row) for each array that it returns. They
        count as declared: what comes is cast to them.
    output, kept
        As for `resolve_outputs`.
    """
    found = []
    for place, (name, dtype, shape) in enumerate(described):
        key = place if name is None and len(described) > 1 else name
        text, _ = parse_dtype(dtype, dtype)
        found.append(OutputValue(key, text, _squeezed(shape)))
    columns = name_values(found, output)
    outputs = Outputs(columns, declared=True, listed=len(described) > 1)
    return check_names(outputs, kept)


def outputs_from_meta(
    meta: Any, output: Naming, kept: Iterable[Hashable], *, listed: bool = False
) -> Outputs:
    """Return the columns that the user declares by ``meta=``.

    Parameters
    ----------
    meta
        A dtype for one column, ``{name: dtype}``, ``(name, dtype)``, a list of those,
        or a pandas object. Kept columns named in it are passed over.
    output, kept
        As for `resolve_outputs`; `output` must name the columns that `meta` names.
    listed
        Whether a list that the model returns holds a column an entry; else a row.

    Raises
    ------
    ValueError
        If `meta` is none of these, or names other columns than `output`.
    """
    declared = parse_meta(meta, {*kept, ERROR_COLUMN})
    if not declared:
        raise ValueError(
            f"meta={meta!r} names no output column, only input columns that are kept; "
            'add the outputs, such as meta={"score": "float32"}'
        )
    columns = name_meta_columns(declared, output)
    return check_names(Outputs(columns, declared=True, listed=listed), kept)


def check_names(
    outputs: Outputs, kept: Iterable[Hashable], *, quarantine: bool = False
) -> Outputs:
    """Return `outputs` if its names differ from those of the kept columns.

    Raises
    ------
    ValueError
        If two outputs share a name, or one has that of a kept column or of the error
        column; with `quarantine` also if a kept column has that of the error column.
    """
    kept = set(kept)
    for place, name in enumerate(outputs.names):
        if name in outputs.names[:place]:
            raise ValueError(
                f'two outputs are named "{name}"; pass output= with names that differ'
            )
        if name == ERROR_COLUMN:
            raise ValueError(
                f'output column "{name}" has the name of the column that '
                'on_error="quarantine" adds; name it otherwise by output='
            )
        if name in kept:
            raise ValueError(
                f'output column "{name}" has the name of the input column "{name}", '
                "which is kept; name the output otherwise by output=, or pass keep= "
                f'without "{name}"'
            )
    if quarantine and ERROR_COLUMN in kept:
        raise ValueError(
            f'on_error="quarantine" adds the column "{ERROR_COLUMN}", which the input '
            f'has already; pass keep= without "{ERROR_COLUMN}", or rename it'
        )
    return outputs


def _traced_value(
    key: Any, value: Any, padded: int | None, uneven: bool
) -> OutputValue:
    shape: Shape = tuple(map(int, value.shape[1:]))
    if padded is not None and shape[:1] == (padded,):
        shape = (None, *shape[1:])
    dtype = dtype_name(value.dtype)
    return OutputValue(key, dtype, _squeezed(shape), len(value), uneven)


def _squeezed(shape: Shape) -> Shape:
    """Return () for a row that holds one number, as an ``(n, 1)`` tensor has them."""
    return () if shape == (1,) else tuple(shape)
