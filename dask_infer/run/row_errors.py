"""What several models say of the rows of one partition on which they failed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_infer.batch.outputs.column_dtypes import STRING


class RowErrors:
    """A message for each row that failed, of all models that failed on it."""

    def __init__(self, rows: int) -> None:
        self._texts: npt.NDArray[Any] = np.full(rows, None, object)

    def add(self, model: str, errors: Any, places: Any = None) -> None:
        """Add the messages of one model.

        Parameters
        ----------
        errors
            A message, or what is missing, for each row.
        places
            Positions of these rows; None for all.
        """
        for place in np.flatnonzero(~pd.isna(errors)):
            row = place if places is None else places[place]
            text, known = f"{model}: {errors[place]}", self._texts[row]
            self._texts[row] = text if known is None else f"{known}; {text}"

    @property
    def passed(self) -> npt.NDArray[np.bool_] | None:
        """Whether each row has no message; None where none has one."""
        failed: npt.NDArray[np.bool_] = self._texts != None  # noqa: E711
        return ~failed if failed.any() else None

    def column(self) -> Any:
        """Return Dask's string array."""
        return pd.array(self._texts, dtype=STRING)
