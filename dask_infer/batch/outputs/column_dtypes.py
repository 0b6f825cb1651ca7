"""The dtypes that output columns have in the result."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np
import pandas as pd

from dask_infer.batch.tensor.tensor_dtype import TensorDtype
from dask_infer.errors import OutputError
from dask_infer.spec import ERROR_COLUMN, OutputColumn, Outputs

#: What Dask makes of text under its default ``dataframe.convert-string``.
STRING = pd.StringDtype("pyarrow")


def output_meta(
    outputs: Outputs, nullable: bool = False, quarantine: bool = False
) -> dict[str, pd.Series[Any]]:
    """Return an empty series for each column that is added, as Dask's meta wants it."""
    dtypes = {column.name: pandas_dtype(column, nullable) for column in outputs.columns}
    if quarantine:
        dtypes[ERROR_COLUMN] = STRING
    return {
        name: pd.Series([], name=name, dtype=cast("Any", dtype))
        for name, dtype in dtypes.items()
    }


@lru_cache(1024)
def pandas_dtype(column: OutputColumn, nullable: bool = False) -> Any:
    """Return the NumPy or extension dtype that `column` has in the result.

    With `nullable`, whole numbers and booleans take the pandas dtypes that can miss.
    """
    if column.shape:
        return TensorDtype(np.dtype(column.dtype), column.shape)
    if column.dtype == "string":
        return STRING
    dtype = pd.api.types.pandas_dtype(column.dtype)
    if not nullable or not isinstance(dtype, np.dtype) or dtype.kind not in "iub":
        return dtype
    return pd.array(np.empty(0, dtype)).dtype


def dtype_name(dtype: Any) -> str:
    """Return the NumPy name that values of a torch or NumPy dtype have as a column.

    Floats that NumPy lacks become float32.
    """
    name = str(dtype).removeprefix("torch.")
    if name.startswith(("bfloat", "float8", "float4")):
        return "float32"
    if name == "complex32":
        return "complex64"
    try:
        known = np.dtype(name)
    except TypeError:
        raise OutputError(
            f"the model returns values of dtype {dtype}, which no column can hold; "
            "cast them in postprocess="
        ) from None
    return {"U": "string", "O": "object", "S": "object"}.get(known.kind, known.name)
