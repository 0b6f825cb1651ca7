"""The fields of an output, whatever structure holds them.

Models answer with tensors, tuples, dicts, dataclasses, frames or lists of rows. Here
they all become ``[(key, value), ...]``: a name, a position, or None for an output that
is itself the value. Nothing is computed or copied but lists of rows.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Hashable, Iterable, Mapping
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch

#: Values by name, by position, or by None for the output itself.
Fields: TypeAlias = list[tuple[Hashable, Any]]


def traced_fields(output: Any, rows: int) -> Fields:
    """Return the fields of an output for synthetic rows, on the client.

    Scalars, None and nested structures (a loss, a cache, hidden states) are left out. A
    list holds fields where each entry has all the rows, as no entry a row has.
    """
    is_list = isinstance(output, list)
    listed = is_list and any(
        torch.is_tensor(value) and value.shape[:1] == (rows,) for value in output
    )
    found = all_fields(output, listed=listed)
    if is_list and not listed:
        found = [(key, stacked(value)) for key, value in found]
    return [(k, v) for k, v in found if is_column(v) and getattr(v, "shape", 1) != ()]


def all_fields(output: Any, *, listed: bool) -> Fields:
    """Return all that `output` holds, columns or not.

    Parameters
    ----------
    output
        What the model or `postprocess` returned for one batch.
    listed
        Whether a list holds a field an entry; else a row an entry.

    Returns
    -------
    list of (key, value)
        Keys are names (dict, dataclass, named tuple, frame, rows of dicts), positions
        (tuple, listed fields), or None where `output` is one value.
    """
    if isinstance(output, list):
        return list(enumerate(output)) if listed else _rows_fields(output)
    named = named_values(output)
    if named is not None:
        return list(named)
    if isinstance(output, tuple):
        texts = isinstance(_first(output), str)
        return [(None, list(output))] if texts else list(enumerate(output))
    if is_column(output) or not hasattr(output, "__dict__"):
        return [(None, output)]
    return list(vars(output).items())


def is_column(value: Any) -> bool:
    """Whether `value` may hold an entry a row: an array of any library, or a list.

    An array without axes may, too: of one row, where the model squeezes.
    """
    if isinstance(value, list):
        first = _first(value)
        return bool(value) and not torch.is_tensor(first) and not _is_nested(first)
    if isinstance(value, tuple):
        return isinstance(_first(value), str)
    if isinstance(value, type):
        return False
    if hasattr(value, "__array__") or hasattr(value, "toarray"):
        return True
    return isinstance(value, pd.api.extensions.ExtensionArray)


def named_values(output: Any) -> Iterable[tuple[Hashable, Any]] | None:
    """Return every named value of `output`; None where it has no names."""
    if isinstance(output, Mapping | pd.DataFrame):
        return output.items()
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
        member = types.MemberDescriptorType
        names = tuple(k for k, v in vars(kind).items() if isinstance(v, member))
    return names


def _rows_fields(rows: list[Any]) -> Fields:
    """Turn rows of dicts (or of dataclasses, named tuples) around, a pass a key."""
    first = _first(rows)
    if isinstance(first, pd.DataFrame) or named_values(first) is None:
        return [(None, rows)]
    if not all(isinstance(row, Mapping) for row in rows):
        rows = [{} if row is None else dict(named_values(row) or ()) for row in rows]
    keys = dict.fromkeys(chain.from_iterable(rows))
    return [(key, [row.get(key) for row in rows]) for key in keys]


def stacked(values: Any) -> Any:
    """Return a list of tensors of one shape as one tensor, all else as it is."""
    tensors = isinstance(values, list) and all(map(torch.is_tensor, values))
    alike = tensors and len({row.shape for row in values}) == 1
    return torch.stack(values) if alike else values


def _first(values: Iterable[Any]) -> Any:
    """First value that is not None."""
    return next((value for value in values if value is not None), None)


def _is_nested(value: Any) -> bool:
    """Whether a list of such values is a structure of tensors rather than rows."""
    if isinstance(value, tuple):
        return any(isinstance(part, torch.Tensor | np.ndarray) for part in value)
    return isinstance(value, list) and any(torch.is_tensor(part) for part in value)
