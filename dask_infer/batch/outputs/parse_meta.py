"""What ``meta=`` declares: dtypes and shapes in every form that Dask takes them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.extensions import ExtensionDtype

from dask_infer.batch.outputs.column_dtypes import dtype_name
from dask_infer.batch.tensor.arrow import arrow_row_shape, arrow_value_dtype, is_list
from dask_infer.batch.tensor.rows import Shape
from dask_infer.batch.tensor.tensor_dtype import TensorDtype


@dataclass(frozen=True)
class OutputValue:
    """One value that a model returns: where it is found and what a row of it holds."""

    #: A name, a position, or None for the output itself.
    key: Any
    #: As in `OutputColumn`.
    dtype: Any
    shape: Shape = ()
    #: Length of the first axis; None where each row has an entry by nature.
    rows: int | None = None
    #: Another axis follows the size of the batch: no row's value.
    uneven: bool = False

    def __str__(self) -> str:
        return "the output" if self.key is None else f"field {self.key!r}"


def parse_meta(meta: Any, passed_over: Collection[Hashable] = ()) -> list[OutputValue]:
    """Return the columns that `meta` names, in its order, but for some.

    Raises
    ------
    ValueError
        If `meta` is no dtype, mapping, pair, list of pairs or pandas object.
    """
    pairs = list(meta_pairs(meta))
    names = [name for name, _ in pairs]
    if not pairs or (len(pairs) > 1 and None in names):
        raise _refusal(meta)
    return [
        OutputValue(name, *parse_dtype(dtype, meta))
        for name, dtype in pairs
        if name not in passed_over
    ]


def parse_dtype(dtype: Any, meta: Any) -> tuple[Any, Shape]:
    """Return the dtype and the shape of one row, as `OutputColumn` has them.

    `meta` is what the user wrote, for the error's text.
    """
    name = "" if isinstance(dtype, TensorDtype) else str(dtype)
    if dtype in (list, dict) or name == "list":
        return "object", ()
    if name.startswith(("torch.", "bfloat16")):
        dtype = dtype_name(name)
    known = _pandas_dtype(dtype)
    if isinstance(known, TensorDtype):
        return known.value.name, known.shape
    if isinstance(known, pd.ArrowDtype):
        return _arrow(known)
    if isinstance(known, np.dtype):
        return _numpy(known), ()
    if isinstance(known, pd.StringDtype):
        return "string", ()
    if isinstance(known, pd.CategoricalDtype):
        raise ValueError(
            f"meta={meta!r}: categories are not supported in output columns; declare "
            '"string", and call .astype("category") on the result'
        )
    if known is None:
        raise _refusal(meta, dtype)
    return _named(known), ()


def meta_pairs(meta: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (name, dtype) for each column; the name is None for a bare dtype."""
    meta = getattr(meta, "_meta", meta)  # a Dask collection
    if isinstance(meta, pd.DataFrame):
        for name, series in meta.items():
            yield name, _dtype_of(series)
    elif isinstance(meta, pd.Series):
        dtypes = [isinstance(value, np.dtype | ExtensionDtype) for value in meta]
        # What `frame.dtypes` gives, or a column.
        named = len(meta) and all(dtypes)
        yield from meta.items() if named else [(meta.name, _dtype_of(meta))]
    elif isinstance(meta, Mapping):
        yield from meta.items()
    elif _is_pair(meta):
        yield meta
    elif isinstance(meta, list | tuple):
        if not all(map(_is_pair, meta)):
            raise _refusal(meta)
        yield from meta
    else:
        yield None, meta


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and (value[0] is None or isinstance(value[0], str | int))
    )


def _dtype_of(series: pd.Series[Any]) -> Any:
    """Dtype of the column, or str where an object column holds text."""
    if series.dtype == object and len(series):
        return str if pd.api.types.infer_dtype(series) == "string" else object
    return series.dtype


def _pandas_dtype(dtype: Any) -> Any:
    """Dtype that pandas understands by `dtype`; None where it understands nothing."""
    if dtype is None or isinstance(dtype, bool | int | float):
        return None
    try:
        known = pd.api.types.pandas_dtype(dtype)
    except (TypeError, ValueError, SyntaxError, NotImplementedError):
        return None
    if isinstance(known, np.dtype) and known.names:
        return None
    return known


def _numpy(dtype: np.dtype[Any]) -> str:
    """NumPy name of the dtype, without byte order; text and times as pandas has it."""
    if dtype.kind == "U":
        return "string"
    if dtype.kind in "SV":
        return "object"
    if dtype.kind in "mM" and np.datetime_data(dtype)[0] == "generic":
        return f"{dtype.name}[ns]"
    return dtype.name


def _named(dtype: Any) -> Any:
    """Return the dtype's name, or the dtype where pandas cannot read the name."""
    return str(dtype) if _pandas_dtype(str(dtype)) == dtype else dtype


def _arrow(known: pd.ArrowDtype) -> tuple[Any, Shape]:
    """Dtype and shape of lists of numbers; text becomes Dask's strings."""
    dtype = known.pyarrow_dtype
    shape: Shape | None
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "string", ()
    if not is_list(dtype):
        return _named(known), ()
    value, shape = arrow_value_dtype(dtype), arrow_row_shape(dtype)
    fixed = pa.types.is_fixed_size_list(dtype)
    if shape is None and not fixed:  # only the first axis may be ragged
        inner = arrow_row_shape(dtype.value_type) if is_list(dtype.value_type) else ()
        shape = None if inner is None else (None, *inner)
    return (known, ()) if value is None or shape is None else (value.name, shape)


def _refusal(meta: Any, dtype: Any = None) -> ValueError:
    culprit = "" if dtype is None or dtype is meta else f" ({dtype!r} is no dtype)"
    return ValueError(
        f"meta={meta!r} does not tell the output columns{culprit}; pass a dtype such "
        'as "float32", {"score": "float32", "label": "string"}, ("score", "float32"), '
        "or an empty pandas object"
    )
