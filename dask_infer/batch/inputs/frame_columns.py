"""The columns of a frame: their names, what they hold, and what is said of mistakes.

Looks at dtypes only, never at values.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd

from dask_infer.batch.inputs.column_types import (
    CONVERTED,
    NUMBERS,
    REMEDIES,
    ColumnType,
    column_type_of,
)
from dask_infer.batch.tensor.lists import row_shape, value_dtype
from dask_infer.batch.tensor.rows import Shape
from dask_infer.errors import InputError
from dask_infer.spec.input_spec import Content

#: Columns listed in a message before "...".
LISTED = 20

STACKED = "a list of columns is stacked into one tensor of numbers"


@dataclass
class FrameColumns:
    """The columns of one call's frame.

    Parameters
    ----------
    meta
        Empty frame with the columns and dtypes of the data.
    schema
        Shape of one row by column from a file's schema.
    deferred
        The user's `preprocess` sees the columns first: dtypes are checked on the
        worker.
    """

    meta: pd.DataFrame
    schema: Mapping[Any, Shape]
    deferred: bool = False
    #: Shape of one row by column from ``shapes=``.
    shapes: dict[Any, Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.meta.columns.nlevels > 1:
            raise several_levels(self.meta.columns.nlevels)
        twice = self.meta.columns[self.meta.columns.duplicated()]
        if len(twice):
            raise InputError(f"two columns are named {quote(twice[0])}; rename one")

    def kind(self, name: Any) -> ColumnType:
        """Return what a column holds."""
        return column_type_of(self.meta[name].dtype)

    def content(self, name: Any) -> tuple[Content, Shape | None]:
        """Return what a row of a column is, and its shape; None where unknown."""
        kind = self.kind(name)
        if kind in NUMBERS:
            return "number", ()
        if kind == "bytes":
            return "bytes", ()
        shape = self.shapes.get(name)
        if kind == "list" and not shape:
            shape = row_shape(self.meta[name].dtype)
        shape = shape or self.schema.get(name)
        return ("list", shape) if kind == "list" or shape else ("object", None)

    def is_listed(self, name: Any) -> bool:
        """Whether the user or a file says that rows of a column are lists."""
        return name in self.shapes or name in self.schema

    def labels(self, element: object) -> list[Any]:
        """Return the column or the columns that one element of ``columns=`` names."""
        names = list(cast(Any, element)) if is_list(element) else [element]
        for name in names:
            grouped = name is element and isinstance(name, tuple | frozenset)
            if grouped or (not self._is_known(name) and _is_no_name(name)):
                raise InputError(
                    f"columns=: {_shown(name)} is neither a column nor a list of "
                    "columns; pass columns= as a name, a list, or a tuple or dict of "
                    "these"
                )
        return [self.check_known(name) for name in names]

    def _is_known(self, name: Any) -> bool:
        try:
            return name in self.meta.columns
        except TypeError:  # it has no hash
            return False

    def check_known(self, name: Any, before: str = "columns= names") -> Any:
        """Return the name of a column that is there, else refuse it."""
        if self._is_known(name):
            return name
        labels = {str(label).lower(): str(label) for label in self.meta.columns}
        found = difflib.get_close_matches(str(name).lower(), labels, n=3, cutoff=0.6)
        near = [labels[label] for label in found]
        guess = f"did you mean {' or '.join(map(quote, near))}? " if near else ""
        raise InputError(
            f"{before} {quote(name)}, which is not there; {guess}"
            f"the columns are {quoted(self.meta.columns)}"
        )

    def add_shape(self, name: Any, given: Any) -> None:
        """Add the shape of a column that the user's ``shapes=`` gives."""
        self.check_known(name, "shapes= names")
        sizes: Any = (given,) if _is_size(given) else given
        listed = isinstance(sizes, Sequence) and len(sizes) > 0
        if not listed or not all(map(_is_size, sizes)):
            raise InputError(
                f'shapes={{"{name}": {given!r}}}: pass the shape of one row as '
                "positive whole numbers, (3, 224, 224) say"
            )
        shape = tuple(int(size) for size in sizes)
        if not self.deferred:
            self._check_list(name, shape)
        self.shapes[name] = shape

    def _check_list(self, name: Any, shape: tuple[int, ...]) -> None:
        kind = self.kind(name)
        own: Any = row_shape(self.meta[name].dtype) or self.schema.get(name)
        known = own is not None and None not in own
        if kind == "text":
            reason = f"it holds text; {CONVERTED}"
        elif kind not in ("list", "object"):
            reason = "it holds one value a row; leave it out of shapes="
        elif known and math.prod(own) != math.prod(shape):
            reason = f"its rows have the shape {own}; pass one of as many numbers"
        else:
            return
        raise InputError(
            f'shapes= gives a row of column "{name}" the shape {shape}, but {reason}'
        )

    def check_stackable(self, name: Any, interface: str, *, tokenizer: bool) -> None:
        """Refuse a column of lists or text among stacked ones."""
        kind: str = self.kind(name)
        if kind == "list" or self.is_listed(name):
            kind = "lists"
        text = kind in ("text", "bytes") and (tokenizer or interface == "numpy")
        if text or kind == "lists":
            raise InputError(
                f'{STACKED}, and column "{name}" holds {kind}; {apart(name)}'
            )

    def check_tensor(self, name: Any, *, chosen: bool) -> None:
        """Refuse what cannot become a tensor; `chosen` if the user named it."""
        kind = self.kind(name)
        dtype = self.meta[name].dtype
        if kind == "list" and value_dtype(dtype) is None:
            kind = "other"
        if kind not in REMEDIES:
            return
        what, advice = REMEDIES[kind]
        advice = advice.format(quote(name))
        if not chosen and len(self.meta.columns) > 1:
            advice = f"columns=[...] or {advice}"
        if kind == "text":
            advice = f"{advice}; {CONVERTED}"
        raise InputError(f"column {quote(name)} holds {what}; pass {advice}")


def several_levels(count: int) -> InputError:
    """Return the refusal of columns that are named by tuples."""
    return InputError(
        f"the frame's columns have {count} levels; give each one name: ddf.columns = "
        '["_".join(map(str, column)) for column in ddf.columns], say'
    )


def apart(name: object) -> str:
    """Return how to pass a column that cannot be stacked."""
    return f"pass columns={quote(name)}, or columns=({quote(name)}, [...])"


def _is_no_name(element: object) -> bool:
    """Whether an element of ``columns=`` is neither a column nor a list of some."""
    odd = isinstance(element, set | frozenset | dict | slice) or element is None
    return odd or is_list(element) or callable(element) or _is_collection(element)


def _is_collection(element: object) -> bool:
    frames = pd.DataFrame | pd.Series
    return isinstance(element, frames) or hasattr(element, "__dask_graph__")


def _shown(element: object) -> str:
    """Return what stands in ``columns=`` for a message; data by its class."""
    if _is_collection(element):
        return f"data ({type(element).__name__})"
    return repr(element)


def is_list(element: object) -> bool:
    """Whether an element of ``columns=`` is a list of columns."""
    return isinstance(element, list | pd.Index | np.ndarray)


def quote(label: object) -> str:
    """Return a column's name for messages."""
    return f'"{label}"' if isinstance(label, str) else repr(label)


def quoted(labels: Iterable[Any]) -> str:
    """Return names of columns for messages, the first of many."""
    shown = [quote(label) for label in labels]
    rest = ["..."] if len(shown) > LISTED else []
    return ", ".join(shown[:LISTED] + rest)


def _is_size(value: object) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(cast(int, value)) > 0
