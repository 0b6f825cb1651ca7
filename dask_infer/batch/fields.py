"""The fields of an output: one value a column, whatever structure holds them.

Models answer with tensors, tuples, dicts, dataclasses, frames or lists of rows. Here
they all become ``[(key, value), ...]``: a name, a position, or None for an output that
is itself the value. Nothing is computed or copied but lists of rows.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Hashable, Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

#: A field's name, its position, or None for the output itself.
Field = tuple[Hashable, Any]


def fields(output: Any) -> list[Field]:
    """Return the fields of `output` that can become columns.

    Parameters
    ----------
    output
        What the model or `postprocess` returned for one batch.

    Returns
    -------
    list of (key, value)
        Keys are names (dict, dataclass, named tuple, frame, rows of dicts), positions
        (tuple, list of tensors), or None where `output` is one value. Scalars, None
        and nested structures (a loss, a cache, hidden states) are left out.
    """
    if is_tensor(output):
        return [(None, output)] if output.dim() else []
    if isinstance(output, list):
        return _list_fields(output)
    named = named_values(output)
    if named is not None:
        return [(name, value) for name, value in named if is_column(value)]
    if isinstance(output, tuple):
        return _tuple_fields(output)
    if is_column(output):
        return [(None, output)]
    values = getattr(output, "__dict__", {})
    return [(name, value) for name, value in values.items() if is_column(value)]


def is_tensor(value: Any) -> bool:
    """Whether `value` is a torch tensor; never imports torch to find out."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def is_column(value: Any) -> bool:
    """Whether `value` holds one entry a row: an array of any library, or a list."""
    if isinstance(value, list):
        first = _first(value)
        return bool(value) and not is_tensor(first) and not _is_nested(first)
    if isinstance(value, tuple):
        return isinstance(_first(value), str)
    if isinstance(value, type):
        return False
    if hasattr(value, "__array__") or hasattr(value, "toarray"):
        return tuple(getattr(value, "shape", (1,))) != ()
    return isinstance(value, pd.api.extensions.ExtensionArray)


def named_values(output: Any) -> Iterable[Field] | None:
    """Return every named value of `output`; None where it has no names."""
    if isinstance(output, Mapping):
        return output.items()
    if isinstance(output, pd.DataFrame):
        columns = enumerate(output.columns)
        return [(name, output.iloc[:, place]) for place, name in columns]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        names = [field.name for field in dataclasses.fields(output)]
        return [(name, getattr(output, name)) for name in names]
    if isinstance(output, tuple):
        tuple_names = _tuple_names(type(output))
        return zip(tuple_names, output, strict=False) if tuple_names else None
    if isinstance(output, np.ndarray):
        return [(name, output[name]) for name in output.dtype.names or ()] or None
    if hasattr(output, "column_names") and hasattr(output, "columns"):  # Arrow tables
        return zip(output.column_names, output.columns, strict=True)
    return None


def _tuple_names(kind: type) -> tuple[str, ...]:
    """Names of a named tuple, or of a struct sequence such as torch.max returns."""
    names: tuple[str, ...] = getattr(kind, "_fields", ())
    if not names and hasattr(kind, "n_sequence_fields"):
        members = vars(kind).items()
        names = tuple(
            name
            for name, member in members
            if isinstance(member, types.MemberDescriptorType)
        )
    return names


def _tuple_fields(output: tuple[Any, ...]) -> list[Field]:
    if isinstance(_first(output), str):
        return [(None, list(output))]
    return _positions(output)


def _list_fields(output: list[Any]) -> list[Field]:
    first = _first(output)
    if first is None:
        return [(None, output)]
    if is_tensor(first) or isinstance(first, np.ndarray):
        if all(np.ndim(value) == 0 for value in output):
            return [(None, _stacked(output))]
        return _positions(output)
    if not isinstance(first, pd.DataFrame) and named_values(first) is not None:
        return _row_fields(output)
    return [(None, output)] if is_column(output) else _positions(output)


def _positions(output: Iterable[Any]) -> list[Field]:
    return [(place, value) for place, value in enumerate(output) if is_column(value)]


def _row_fields(rows: list[Any]) -> list[Field]:
    """Turn rows of dicts (or of dataclasses, named tuples) around, a pass a key."""
    if not all(isinstance(row, Mapping) for row in rows):
        rows = [{} if row is None else dict(named_values(row) or ()) for row in rows]
    keys = dict.fromkeys(chain.from_iterable(rows))
    columns = ((key, [row.get(key) for row in rows]) for key in keys)
    return [(key, _stacked(values)) for key, values in columns]


def _stacked(values: list[Any]) -> Any:
    """Return rows that are tensors as one tensor; other rows as they are."""
    if not all(map(is_tensor, values)) or len({row.shape for row in values}) != 1:
        return values
    import torch

    return torch.stack(values)


def _first(values: Iterable[Any]) -> Any:
    """First value that is not None."""
    return next((value for value in values if value is not None), None)


def _is_nested(value: Any) -> bool:
    """Whether a list of such values is a structure of tensors rather than rows."""
    if isinstance(value, tuple):
        return any(is_tensor(part) or isinstance(part, np.ndarray) for part in value)
    return isinstance(value, list) and any(is_tensor(part) for part in value)
