"""What a column holds, as far as its dtype tells."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_infer.batch.tensor.lists import is_list, value_dtype

#: "object" may be anything: only its values tell. "other" cannot become a tensor.
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

#: Kinds that are one number a row.
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

CONVERTED = (
    "if it held lists, Dask turned them into text: run "
    'dask.config.set({"dataframe.convert-string": False}) before the dataframe is made'
)

#: What stops a column from being a tensor, and what to pass; "{0}" is its name.
REMEDIES: dict[ColumnType, tuple[str, str]] = {
    "text": ("text", "tokenizer="),
    "bytes": ("bytes", "preprocess= to decode them"),
    "date": ("dates or times", "preprocess= to make numbers of them"),
    "categorical": ("categories", "their codes: ddf[{0}].cat.codes"),
    "complex": ("complex numbers", "preprocess= to split them"),
    "other": (
        "values that cannot become a tensor",
        "preprocess= to make numbers of them",
    ),
}


def column_type_of(dtype: Any) -> ColumnType:
    """Tell what a column of `dtype` holds: NumPy, nullable, Arrow and tensor dtypes."""
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
    """Tell the kind of a column's numbers, or of the numbers in its lists."""
    kind = column_type_of(dtype)
    return column_type_of(value_dtype(dtype) or dtype) if kind == "list" else kind
