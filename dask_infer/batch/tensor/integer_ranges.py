"""Which numbers a dtype holds: a cast that would wrap or round is refused instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def misfits(values: Array, dtype: np.dtype[Any]) -> Array | None:
    """Return which values an integer or boolean dtype cannot hold; None for none.

    NaN and what is no whole number are among them. Floating dtypes hold everything:
    what is beyond their range is infinite.
    """
    known = values.dtype.kind in "iufb" and dtype.kind in "iub"
    if not known or np.can_cast(values.dtype, dtype, "safe"):
        return None
    low, high = 0, 1
    if dtype.kind != "b":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if values.dtype.kind == "f":
        # 2**63 is no int64, though it is what its largest value is rounded to.
        beyond = np.nextafter(float(high + 1), 0.0)
        with np.errstate(invalid="ignore"):
            whole = values == np.trunc(values)
        wrong = ~(whole & (values >= low) & (values <= beyond))
    else:
        wrong = (values < low) | (values > high)
    return wrong if wrong.any() else None
