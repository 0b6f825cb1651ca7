"""What makes one output of several models' outputs: functions of NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd


class Combine:
    """The function that an `Ensemble` ends with.

    Parameters
    ----------
    how
        "mean", "vote", "stack", or the user's function of the list of outputs.
    """

    def __init__(self, how: str | Callable[..., Any]) -> None:
        self.function = how if callable(how) else FUNCTIONS[how]
        self.each_field = not callable(how)
        self.__name__ = getattr(self.function, "__name__", type(how).__name__)

    def __call__(
        self, *, names: Sequence[dict[str | None, str]], **arguments: Any
    ) -> Any:
        """Return the output: one value, or values by field.

        Parameters
        ----------
        names
            Of each model its arguments, by field; the field is None where it returns
            one value.
        arguments
            One for each output column of each model.
        """
        outputs = [
            {field: arguments[name] for field, name in fields.items()}
            for fields in names
        ]
        if not self.each_field:
            return self.function([_output(fields) for fields in outputs])
        return _output(
            {
                field: self.function([fields[field] for fields in outputs])
                for field in outputs[0]
            }
        )


def mean(outputs: Sequence[Any]) -> Any:
    """Return the mean in float32 at least, of whole numbers in float64."""
    if isinstance(outputs[0], list):
        return _by_row(mean, outputs)
    dtype = mean_dtype([each.dtype for each in outputs])
    total = outputs[0].astype(dtype)
    for each in outputs[1:]:
        total += each
    total /= len(outputs)
    return total


def vote(outputs: Sequence[Any]) -> Any:
    """Return the label that is given most often; of several such the smallest.

    What is missing is no vote.
    """
    shape = np.shape(outputs[0])
    flat = [np.asarray(each).reshape(-1) for each in outputs]
    codes, labels = pd.factorize(np.concatenate(flat), sort=True)
    given = np.sort(codes.reshape(len(outputs), -1), axis=0)
    counts = np.stack([(given == each).sum(axis=0) for each in given])
    counts[given < 0] = 0
    most = counts.argmax(axis=0)  # the first of the largest, which is sorted
    winners = given[most, np.arange(given.shape[1])]
    found: Any = pd.api.extensions.take(np.asarray(labels), winners, allow_fill=True)
    if found.dtype == object:
        found[winners < 0] = None
    return found.reshape(shape)


def stack(outputs: Sequence[Any]) -> Any:
    """Return ``(n, k, ...)``."""
    return np.stack(outputs, axis=1)


def mean_dtype(dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """Return the dtype that the mean of these is computed in."""
    if any(dtype.kind != "f" for dtype in dtypes):
        return np.dtype("float64")
    return np.result_type(np.float32, *dtypes)


FUNCTIONS: dict[str, Callable[..., Any]] = {"mean": mean, "vote": vote, "stack": stack}


def _by_row(function: Callable[..., Any], outputs: Sequence[list[Any]]) -> list[Any]:
    """Apply a function to rows of any length, put one after the other."""
    lengths = [[len(row) for row in rows] for rows in outputs]
    if any(each != lengths[0] for each in lengths):
        raise ValueError("the models return lists of other lengths for a row")
    joined = function([np.concatenate(rows) for rows in outputs])
    return np.split(joined, np.cumsum(lengths[0])[:-1])


def _output(fields: dict[str | None, Any]) -> Any:
    return fields.get(None, fields)
