"""Columns as plain pandas has them, whatever dtype Dask made of them.

Estimators are fitted in pandas, and many distinguish ``pd.NA`` from NaN and None.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dask_infer.batch.inputs.column_types import NUMBERS, column_type_of
from dask_infer.batch.inputs.columns import numpy_dtype

#: Before pandas 3 a change to a shallow copy is a change to the partition.
COPY_ON_WRITE = int(pd.__version__.partition(".")[0]) >= 3


def plain_frame(frame: pd.DataFrame, *, none: bool = False) -> pd.DataFrame:
    """Return `frame` with text as objects and nullable numbers as floats.

    Columns that plain pandas has as well are not copied.

    Parameters
    ----------
    none
        Missing text is None, not NaN.
    """
    copy = frame.copy(deep=False)
    for name, dtype in frame.dtypes.items():
        if not isinstance(dtype, np.dtype):
            copy[name] = _plain(frame[name], None if none else np.nan)
    return copy


def _plain(series: pd.Series[Any], blank: Any) -> pd.Series[Any]:
    dtype = series.dtype
    kind = column_type_of(dtype)
    if kind == "text":
        values = series.to_numpy(dtype=object, na_value=blank)
        return pd.Series(values, series.index, dtype=object, name=series.name)
    if isinstance(dtype, pd.CategoricalDtype):
        texts = column_type_of(dtype.categories.dtype) == "text"
        categories = dtype.categories.astype(object)
        return series.cat.rename_categories(list(categories)) if texts else series
    # Sparse numbers are as plain as they can be.
    if kind in NUMBERS and hasattr(dtype, "numpy_dtype"):
        values = series.to_numpy(numpy_dtype(dtype, "f", np.float64), na_value=np.nan)
        return pd.Series(values, series.index, name=series.name)
    if isinstance(dtype, pd.ArrowDtype):
        values = series.array.__arrow_array__().to_pandas().array
        return pd.Series(values, series.index, name=series.name)
    return series
