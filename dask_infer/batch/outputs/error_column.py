"""The column that says of each row what failed, missing where nothing did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from dask_infer.batch.outputs.column_dtypes import STRING
from dask_infer.batch.tensor.rows import Array, Positions


class ErrorColumn:
    """Messages of the failed rows of one partition."""

    def __init__(self, n: int) -> None:
        self.n = n
        #: Made for the first failed row: most partitions have none.
        self._texts: Array | None = None

    def put(self, rows: Positions, text: str) -> None:
        """Give these rows a message."""
        if self._texts is None:
            self._texts = np.full(self.n, None, object)
        self._texts[rows] = text

    def finish(self) -> Any:
        """Return Dask's string array."""
        texts: Any = pa.nulls(self.n, pa.large_string())
        if self._texts is not None:
            texts = pa.array(self._texts, pa.large_string())
        return pd.array(texts, dtype=STRING)
