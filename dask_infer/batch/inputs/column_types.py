"""What a column holds, by its dtype or, for objects, by its values."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.types import infer_dtype

from dask_infer.batch.tensor.lists import is_list, value_dtype

#: "object" may be anything: only its values show. "other" cannot become a tensor.
ColumnType = Literal[
    "floating",
    "integer",
    "bool",
    "text",
    "bytes",
    "list",
    "object",
    "date",
    "categorical",
    "complex",
    "other",
]

#: Types that are one number a row.
NUMBERS = frozenset({"floating", "integer", "bool"})

_BY_CODE: dict[str, ColumnType] = {
    "f": "floating",
    "i": "integer",
    "u": "integer",
    "b": "bool",
    "M": "date",
    "m": "date",
    "c": "complex",
    "O": "object",
    "U": "text",
    "S": "bytes",
}

#: What pandas infers of objects, in our words.
_INFERRED: dict[str, ColumnType] = {
    "floating": "floating",
    "mixed-integer-float": "floating",
    "decimal": "floating",
    "empty": "floating",
    "integer": "integer",
    "boolean": "bool",
    "string": "text",
    "bytes": "bytes",
}

CONVERTED = (
    "if it held lists, Dask turned them into text: run "
    'dask.config.set({"dataframe.convert-string": False}) before the dataframe is made'
)

#: What stops a column from being a tensor, and what to pass; "{0}" is its name.
REMEDIES: dict[ColumnType, tuple[str, str]] = {
    "text": ("text", "tokenizer="),
    "bytes": ("bytes", "preprocess= to decode them"),
    "date": ("dates or times", "preprocess= to make numbers of them"),
    "categorical": (
        "categories",
        'their codes, ddf[{0}].cat.codes, or their texts, ddf[{0}].astype("string")',
    ),
    "complex": ("complex numbers", "preprocess= to split them"),
    "other": (
        "values that cannot become a tensor",
        "preprocess= to make numbers of them",
    ),
}


def column_type_of(dtype: Any) -> ColumnType:
    """Return what a column holds, of a NumPy, nullable, Arrow or tensor dtype."""
    if isinstance(dtype, np.dtype):
        return _BY_CODE.get(dtype.kind, "other")
    if is_list(dtype):
        return "list"
    if isinstance(dtype, pd.ArrowDtype):
        return _arrow_kind(dtype.pyarrow_dtype)
    if isinstance(dtype, pd.StringDtype):
        return "text"
    if isinstance(dtype, pd.CategoricalDtype):
        return "categorical"
    if isinstance(dtype, pd.PeriodDtype):
        return "date"
    kind = _BY_CODE.get(getattr(dtype, "kind", "O"), "other")
    return "other" if kind == "object" else kind


def _arrow_kind(arrow: pa.DataType) -> ColumnType:
    is_ = pa.types
    if is_.is_floating(arrow) or is_.is_decimal(arrow) or is_.is_null(arrow):
        return "floating"
    if is_.is_integer(arrow):
        return "integer"
    if is_.is_boolean(arrow):
        return "bool"
    if is_.is_string(arrow) or is_.is_large_string(arrow) or is_.is_string_view(arrow):
        return "text"
    if is_.is_temporal(arrow):
        return "date"
    if is_.is_dictionary(arrow):
        return "categorical"
    binary = (is_.is_binary, is_.is_large_binary, is_.is_fixed_size_binary)
    return "bytes" if any(check(arrow) for check in binary) else "other"


def number_type_of(dtype: Any) -> ColumnType:
    """Return the type of a column's numbers, or of the numbers in its lists."""
    kind = column_type_of(dtype)
    return column_type_of(value_dtype(dtype) or dtype) if kind == "list" else kind


def content_of(series: pd.Series[Any]) -> ColumnType:
    """Return what a column holds; looks at values where the dtype is object."""
    kind = column_type_of(series.dtype)
    if kind != "object":
        return kind
    inferred = infer_dtype(series, skipna=True)
    if inferred in _INFERRED:
        return _INFERRED[inferred]
    present = (value for value in series if not is_missing(value))
    if isinstance(next(present, None), list | tuple | np.ndarray):
        return "list"
    return "floating" if all(map(is_number, series)) else "other"


def is_number(value: object) -> bool:
    """Whether an object is a number, or missing."""
    return isinstance(value, int | float | np.number | Decimal) or is_missing(value)


def is_missing(value: object) -> bool:
    """Whether an object is None, NaN, NA or NaT."""
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))  # type: ignore[call-overload]
