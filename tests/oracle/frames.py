"""Frames of every dtype, cut anywhere into partitions: drawn, described, made.

Values are drawn as Python's own; numbers are such that every dtype holds them exactly,
so a reference may be computed from the values and never from a converted column.
"""

from __future__ import annotations

import decimal
import itertools
import tempfile
from dataclasses import dataclass, field
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from dask_infer import TensorDtype

#: Dtypes by what they hold. Those that cannot hold a missing value come first.
PLAIN = {
    "float": (),
    "int": (
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    ),
    "bool": ("bool",),
    "text": (),
    "bytes": (),
    "list": (),
    "ints": (),
}  # fmt: skip
NULLABLE = {
    "float": (
        "float64", "float32", "float16", "Float64", "Float32", "double[pyarrow]",
        "float[pyarrow]", "decimal",
    ),
    "int": (
        "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt64", "int64[pyarrow]",
        "int32[pyarrow]", "uint8[pyarrow]",
    ),
    "bool": ("boolean", "bool[pyarrow]"),
    "text": ("str", "object", "string[python]", "string[pyarrow]", "utf8", "large"),
    "bytes": ("object", "binary", "large_binary"),
    #: Lists of floats, all of one length.
    "list": (
        "fixed float32", "fixed float64", "list float32", "list float64",
        "large_list float64", "object lists", "object arrays", "tensor",
    ),
    #: Lists of integers.
    "ints": (
        "list int64", "list int32", "large_list int64", "object lists",
        "object arrays",
    ),
}  # fmt: skip

_ARROW = {
    "utf8": pa.string(),
    "large": pa.large_string(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "decimal": pa.decimal128(12, 3),
}

INDEXES = ("range", "shifted", "shuffled", "same", "text", "dates", "floats")
WORDS = ("a", "bb", "ccc", "a bb", "bb bb a", "x y z ccc", "")


@dataclass(frozen=True)
class Column:
    """One column: what it holds, in which dtype, and its values; None is missing."""

    holds: str
    dtype: str
    values: tuple[Any, ...]
    #: Numbers in a row of a "list" column.
    width: int = 0

    def series(self, index: pd.Index[Any]) -> pd.Series[Any]:
        """Return the column as pandas holds it."""
        if self.holds in ("list", "ints"):
            return self._lists(index)
        values: list[Any] = list(self.values)
        if self.dtype == "decimal":
            values = [None if v is None else decimal.Decimal(str(v)) for v in values]
        if self.dtype in _ARROW:
            return pd.Series(pd.array(values, pd.ArrowDtype(_ARROW[self.dtype])), index)
        if self.dtype.startswith("float") and self.dtype[5:].isdigit():
            values = [np.nan if v is None else v for v in values]
        return pd.Series(values, index, dtype=self.dtype)

    @property
    def is_fixed(self) -> bool:
        """Whether the dtype of lists tells how long they are."""
        return self.dtype == "tensor" or self.dtype.startswith("fixed")

    def is_known_late(self, shaped: bool) -> bool:
        """Whether only its values tell what a row is."""
        if self.holds == "list":
            return not (self.is_fixed or shaped) or self.dtype.startswith("object")
        return self.holds == "ints" or self.dtype == "object"

    def _lists(self, index: pd.Index[Any]) -> pd.Series[Any]:
        kind, _, value = self.dtype.partition(" ")
        values: list[Any] = [v if v is None else list(v) for v in self.values]
        if kind == "object":
            item = np.float64 if self.holds == "list" else np.int64
            if value == "arrays":
                values = [v if v is None else np.array(v, item) for v in values]
            held = np.empty(len(values), object)
            for place, row in enumerate(values):
                held[place] = row
            return pd.Series(held, index)
        if kind == "tensor":
            dtype = TensorDtype("float32", (self.width,))
            return pd.Series(values, index, dtype=dtype)
        item = pa.type_for_alias(value)
        arrow = {
            "fixed": pa.list_(item, self.width),
            "list": pa.list_(item),
            "large_list": pa.large_list(item),
        }[kind]
        array = pd.arrays.ArrowExtensionArray(pa.array(values, arrow))
        return pd.Series(array, index)


@dataclass(frozen=True)
class Frame:
    """Columns under an index."""

    columns: dict[str, Column]
    index: str = "range"
    #: "parts" as they are; "divided" by `dd.from_pandas`, which knows divisions and
    #: turns objects into text; "parquet", a file a partition.
    source: str = "parts"
    rows: int = field(default=0)

    def pandas(self) -> pd.DataFrame:
        """Return all rows."""
        index = _index(self.index, self.rows)
        return pd.DataFrame(
            {name: column.series(index) for name, column in self.columns.items()},
            index=index,
        )

    def dask(self, cut: tuple[int, ...]) -> Any:
        """Return the rows in partitions of the lengths `cut`."""
        frame = self.pandas()
        if self.source == "divided":
            kinds = {column.holds for column in self.columns.values()}
            objects = bool(kinds & {"list", "ints", "bytes"})
            with dask.config.set({"dataframe.convert-string": not objects}):
                return dd.from_pandas(frame, npartitions=len(cut), sort=False)
        ends = np.cumsum((0, *cut))
        places = list(itertools.pairwise(ends.tolist()))
        with dask.config.set({"dataframe.convert-string": False}):
            if self.source == "parquet" and self.is_storable:
                return dd.read_parquet(_files(frame, places))
            parts = [frame.iloc[a:b] for a, b in places]
            return dd.from_map(_same, parts, meta=frame.iloc[:0])

    @property
    def is_storable(self) -> bool:
        """Whether a file gives the dtypes back: pandas has no missing integers."""
        return not any(
            (column.holds in ("int", "bool") and None in column.values)
            or column.dtype in ("tensor", "decimal", "object", "float16")
            or column.dtype.startswith("object ")
            for column in self.columns.values()
        )


def _files(frame: pd.DataFrame, places: list[tuple[int, int]]) -> list[str]:
    """Write a file a partition; they live as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="oracle")
    _folders.append(folder)
    del _folders[:-4]
    # pandas cannot read back the dtypes of lists that its own metadata name.
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata(None)
    paths = [f"{folder.name}/{i:03d}.parquet" for i in range(len(places))]
    for path, (a, b) in zip(paths, places, strict=True):
        pq.write_table(table.slice(a, b - a), path)
    return paths


#: The last few frames that were written.
_folders: list[tempfile.TemporaryDirectory[str]] = []


def _same(part: pd.DataFrame) -> pd.DataFrame:
    return part


def _index(kind: str, n: int) -> pd.Index[Any]:
    numbers = np.arange(n)
    made: dict[str, Any] = {
        "range": lambda: pd.RangeIndex(n),
        "shifted": lambda: pd.Index(numbers * 3 + 7, name="key"),
        "shuffled": lambda: pd.Index((numbers * 7 + 3) % max(n, 1)),
        "same": lambda: pd.Index(np.zeros(n, int)),
        "text": lambda: pd.Index([f"r{i}" for i in range(n)], dtype="str"),
        "dates": lambda: pd.date_range("2026-01-01", periods=n),
        "floats": lambda: pd.Index(numbers / 2),
    }
    index: pd.Index[Any] = made[kind]()
    return index


# --- strategies --------------------------------------------------------------------

small_floats = st.integers(-16, 16).map(lambda i: i / 4)
small_ints = st.integers(0, 9)


def values_of(holds: str, width: int) -> st.SearchStrategy[Any]:
    """Return what one present value of a column may be."""
    if holds == "float":
        return small_floats
    if holds == "int":
        return small_ints
    if holds == "bool":
        return st.booleans()
    if holds == "text":
        return st.sampled_from(WORDS)
    if holds == "bytes":
        return st.sampled_from((b"", b"a", b"\xff\x00", b"abc"))
    if holds == "list":
        return st.tuples(*[small_floats] * width)
    return st.lists(st.integers(1, 9), min_size=1, max_size=5).map(tuple)


@st.composite
def columns(
    draw: st.DrawFn,
    rows: int,
    holds: str,
    width: int = 0,
    missing: bool = True,
    values: st.SearchStrategy[Any] | None = None,
    dtypes: tuple[str, ...] = (),
) -> Column:
    """Draw one column of so many rows."""
    gaps = missing and draw(st.integers(0, 3)) == 0
    choices = NULLABLE[holds] if gaps else (*PLAIN[holds], *NULLABLE[holds])
    choices = tuple(c for c in choices if not dtypes or c in dtypes) or choices
    dtype = draw(st.sampled_from(choices))
    value = values_of(holds, width) if values is None else values
    if gaps:
        value = st.one_of(value, value, st.none())
    drawn = draw(st.lists(value, min_size=rows, max_size=rows))
    return Column(holds, dtype, tuple(drawn), width)


@st.composite
def cuts(draw: st.DrawFn, rows: int) -> tuple[int, ...]:
    """Draw partition lengths: whole, in ones, or anywhere, with empty ones."""
    kind = draw(st.sampled_from(("whole", "ones", "any", "any", "any")))
    if kind == "whole":
        return (rows,)
    if kind == "ones" and rows:
        return (1,) * rows
    places = st.lists(st.integers(0, rows), max_size=4)
    ends = [0, *sorted(draw(places)), rows]
    return tuple(b - a for a, b in itertools.pairwise(ends))
