"""Which columns the model's results become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Column that ``on_error="quarantine"`` adds.
ERROR_COLUMN = "infer_error"


@dataclass(frozen=True)
class OutputColumn:
    """One column of the result and where its values are found in the output."""

    #: Column name in the result.
    name: str
    #: NumPy dtype name of the values ("float32", "int64", "bool", ...), "string",
    #: "object", the name of a pandas dtype, or the dtype where it has no such name.
    dtype: Any
    #: Shape of one row: ``()`` a scalar; ``(3, 4)`` fixed; a leading None is a ragged
    #: axis. Of an inferred column that axis is the tokens', whose padding is cut off;
    #: of a declared one only where the worker finds that it is
    #: (`Assembler.is_axis_unknown`).
    shape: tuple[int | None, ...] = ()
    #: Where: a dict key or attribute (str), a tuple position (int), or None for the
    #: output itself.
    field: str | int | None = None
    #: Which column of an ``(n, k)`` output; None for all of it.
    index: int | None = None


@dataclass(frozen=True)
class Outputs:
    """The columns that a prediction adds."""

    columns: tuple[OutputColumn, ...]
    #: Declared by the user through ``meta=``, not inferred.
    declared: bool = False
    #: Each entry of a list that the model returns is a field, as in a tuple; else each
    #: is a row.
    listed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Their names, in order."""
        return tuple(column.name for column in self.columns)
