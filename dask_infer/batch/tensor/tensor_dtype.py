"""The pandas dtype of a column that holds one array a row."""

from __future__ import annotations

import ast
import re
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
from pandas.api.extensions import (
    ExtensionArray,
    ExtensionDtype,
    register_extension_dtype,
)

from dask_infer.batch.tensor.arrow import from_arrow

PATTERN = re.compile(r"tensor\[(?P<value>\w+), (?P<shape>\(.*\))\]")


@register_extension_dtype
class TensorDtype(ExtensionDtype):
    """Dtype of a column of arrays: what they hold, and the shape of one row.

    Parameters
    ----------
    value
        NumPy dtype of the numbers: integers, floats or booleans.
    shape
        Shape of one row, of one axis at least. A leading None is a ragged axis,
        whose length is each row's own.

    Notes
    -----
    ``dtype.name`` and ``repr(dtype)`` are readable; ``str(dtype)`` is ``"object"``,
    because that is what pyarrow writes into the pandas metadata of a Parquet file,
    where any other word makes ``pandas.read_parquet`` fail in a process without this
    package (pandas 3.1, pyarrow 26). The files say the same as those of object
    columns of arrays, so every reader gets these.
    """

    #: NumPy dtype of the numbers.
    value: np.dtype[Any]
    #: Shape of one row; a leading None is ragged.
    shape: tuple[int | None, ...]
    #: Array class of columns of this dtype; its module enters itself here.
    array_type: ClassVar[Any]

    _metadata = ("value", "shape")
    type = np.ndarray
    kind = "O"
    na_value = pd.NA

    def __init__(self, value: Any, shape: tuple[int | None, ...]) -> None:
        self.value = np.dtype(value).newbyteorder("=")
        self.shape = tuple(None if n is None else int(n) for n in shape)
        if self.value.kind not in "biuf" or self.value.itemsize > 8:
            raise TypeError(f"a tensor column holds numbers, not {self.value}")
        if not self.shape or None in self.shape[1:]:
            raise ValueError(
                f"shape {self.shape}: a row has one axis at least, and only the "
                "first may be ragged (None)"
            )

    @property
    def name(self) -> str:  # type: ignore[override]  # read-only there as well
        """What people read, and what `construct_from_string` takes."""
        return f"tensor[{self.value}, {self.shape}]"

    def __repr__(self) -> str:
        return self.name

    def __str__(self) -> str:
        return "object"

    def __format__(self, spec: str) -> str:
        # Messages say f"{dtype}"; they should say what it is.
        return format(self.name, spec)

    @property
    def is_ragged(self) -> bool:
        """Whether rows have lengths of their own."""
        return self.shape[0] is None

    @property
    def arrow(self) -> pa.DataType:
        """Arrow type of the column: lists in lists, fixed in size where rows are."""
        arrow = pa.from_numpy_dtype(self.value)
        for size in reversed(self.shape):
            # 64-bit offsets are NumPy's own, so ragged rows need no copy either.
            arrow = pa.large_list(arrow) if size is None else pa.list_(arrow, size)
        return arrow

    @classmethod
    def construct_from_string(cls, string: str) -> TensorDtype:
        """Parse ``"tensor[float32, (384,)]"``."""
        if not isinstance(string, str):
            raise TypeError(
                f"'construct_from_string' expects a string, got {type(string)}"
            )
        match = PATTERN.fullmatch(string)
        if match is None:
            raise TypeError(f"Cannot construct a 'TensorDtype' from '{string}'")
        return cls(match["value"], ast.literal_eval(match["shape"]))

    @classmethod
    def construct_array_type(cls) -> Any:
        """Return the array class of this dtype."""
        return cls.array_type

    def __from_arrow__(self, array: pa.Array | pa.ChunkedArray) -> ExtensionArray:
        column: ExtensionArray = self.array_type._conform(from_arrow(array), self)
        return column

    def _get_common_dtype(self, dtypes: list[Any]) -> Any:
        """Dtype of a concatenation: ragged where lengths differ.

        With object it is object, as for every pandas dtype: pandas asks this for one
        row of a frame too (``df.iloc[0]``), where object may be text.
        """
        if not all(isinstance(dtype, TensorDtype) for dtype in dtypes):
            return None
        if len({dtype.shape[1:] for dtype in dtypes}) > 1:
            return None
        lengths = {dtype.shape[0] for dtype in dtypes}
        first = lengths.pop() if len(lengths) == 1 else None
        value = np.result_type(*(dtype.value for dtype in dtypes))
        return TensorDtype(value, (first, *self.shape[1:]))

    def __dask_tokenize__(self) -> tuple[str, str]:
        return (type(self).__name__, self.name)
