"""The functions and classes of the catalogue, and what one row gives."""

from __future__ import annotations

import decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tests.oracle.entries import Arg, Entry, Out
from tests.oracle.functions import (
    Built,
    Method,
    as_arrays,
    as_arrow,
    as_block,
    as_dict,
    as_dicts,
    as_frame,
    as_pairs,
    as_record,
    as_records,
    as_structured,
    as_tuple,
    booleans,
    byte_lengths,
    dates,
    decimals,
    dtype_code,
    gappy,
    id_sums,
    ids_again,
    integers,
    label_array,
    label_objects,
    labels,
    lengths,
    maps,
    mean_of_all,
    no_empty,
    nothing,
    one_short,
    own_rows,
    picky,
    read_only,
    refilled,
    repeat_arrays,
    repeats,
    scalar_of_all,
    scaled,
    scored,
    struct_lists,
    structs,
    total,
    total_column,
    total_items,
    total_list,
    total_series,
    total_squeezed,
    total_tensor,
    upper,
    vector_list,
    vector_lists,
    vectors,
    words,
)

V2 = Arg("vector", ("float", "int", "bool"), 2, "x", lists=True)
F64 = Out("float64")
PQ = {"p": F64, "q": F64}
TEXT = Arg("text", ("text",), keyword="texts")
LIST = pd.ArrowDtype(pa.list_(pa.float64()))


def _s(x: Any) -> float:
    return float(sum(float(v) for v in x))


def _z(x: Any) -> float:
    """The sum, 0 for NaN."""
    found = _s(x)
    return 0.0 if found != found else found


def _pq(x: Any) -> Any:
    return {"p": _s(x), "q": -_s(x)}


def _label(x: Any) -> str:
    return "up" if _z(x) > 0 else "down"


def _n(x: Any) -> int:
    return int(abs(_z(x))) % 4


def _picky(x: Any) -> float:
    if any(float(v) < -3 for v in x):
        raise KeyError("below -3")
    return _s(x)


def _nonempty(text: str) -> int:
    if not text:
        raise ValueError("empty text")
    return len(text)


def _gappy(x: Any) -> float | None:
    return None if _s(x) < 0 else _s(x)


def _decimal(x: Any) -> Any:
    return decimal.Decimal(f"{_z(x):.2f}")


def _date(x: Any) -> Any:
    return pd.Timestamp("2026-01-01") + pd.Timedelta(days=int(np.floor(_z(x))))


def _entry(model: Any, alone: Any, outputs: Any, args: Any = V2, **more: Any) -> Entry:
    outputs = {"": outputs} if isinstance(outputs, Out) else outputs
    args = args if isinstance(args, tuple) else (args,)
    name = more.pop("name", getattr(model, "__name__", type(model).__name__))
    settled = {"reads": "numpy", "inferred": False, "tolerance": 1e-12} | more
    return Entry(name, lambda: model, args, outputs, alone, **settled)


def _arrow(kind: Any) -> Out:
    return Out(pd.ArrowDtype(kind))


STRUCT = pa.struct([("p", pa.float64()), ("s", pa.string())])

ENTRIES = (
    *(
        _entry(f, _s, F64)
        for f in (
            total,
            total_list,
            total_column,
            total_squeezed,
            total_series,
            total_tensor,
            total_items,
            read_only,
            refilled,
            Built,
        )
    ),
    *(
        _entry(f, _pq, PQ)
        for f in (
            as_frame,
            as_dict,
            as_dicts,
            as_records,
            as_record,
            as_pairs,
            as_arrays,
            as_block,
            as_tuple,
            as_structured,
            as_arrow,
        )
    ),
    *(_entry(f, _label, Out("string")) for f in (labels, label_array, label_objects)),
    _entry(
        scored, lambda x: {"p": _label(x), "q": _s(x)}, {"p": Out("string"), "q": F64}
    ),
    *(
        _entry(
            f, lambda x: [_s(x)] * 3, Out(pd.ArrowDtype(pa.list_(pa.float64(), 3)), 1)
        )
        for f in (vectors, vector_list, vector_lists)
    ),
    _entry(own_rows, lambda x: float(x[0]), F64),
    _entry(picky, _picky, F64),
    _entry(
        gappy,
        _gappy,
        Out("Float64"),
        Arg("vector", ("float", "int"), 2, "x", missing=False),
    ),
    *(
        _entry(f, lambda x: [_s(x)] * _n(x), Out(kind, 1), name=f"{f.__name__} {kind}")
        for f in (repeats, repeat_arrays)
        for kind in (LIST, "object")
    ),
    _entry(structs, lambda x: {"": {"p": _s(x), "s": f"{_s(x):.2f}"}}, _arrow(STRUCT)),
    _entry(
        struct_lists,
        lambda x: {"": [{"p": _s(x), "s": "a"}] * _n(x)},
        _arrow(pa.list_(STRUCT)),
    ),
    _entry(
        maps, lambda x: {"": [("a", _s(x))]}, _arrow(pa.map_(pa.string(), pa.float64()))
    ),
    _entry(decimals, _decimal, _arrow(pa.decimal128(10, 2))),
    _entry(integers, lambda x: int(np.floor(_z(x))), Out("int64")),
    _entry(
        integers, lambda x: int(np.floor(_z(x))), Out("Int32"), name="integers Int32"
    ),
    _entry(integers, lambda x: float(np.floor(_z(x))), F64, name="integers as float64"),
    _entry(booleans, lambda x: _s(x) > 0, Out("bool")),
    _entry(dates, _date, Out("datetime64[ns]")),
    _entry(mean_of_all, None, F64, structure=2),
    _entry(one_short, None, F64, structure=1),
    _entry(scalar_of_all, None, F64, structure=2),
    _entry(nothing, None, F64, structure=1),
    _entry(words, None, F64, structure=1),
    _entry(as_dict, None, {"p": F64, "z": F64}, structure=1, name="field missing"),
    _entry(vectors, None, F64, structure=1, name="vectors as numbers"),
    _entry(lengths, len, Out("int64"), TEXT),
    _entry(upper, str.upper, Out("string"), TEXT),
    _entry(no_empty, _nonempty, Out("int64"), TEXT),
    _entry(byte_lengths, len, Out("int64"), Arg("bytes", ("bytes",), keyword="blobs")),
    _entry(id_sums, sum, Out("int64"), Arg("ids", ("ints",), keyword="rows")),
    _entry(
        ids_again,
        lambda r: [2 * v for v in r],
        Out(pd.ArrowDtype(pa.list_(pa.int64())), 1),
        Arg("ids", ("ints",), keyword="rows"),
    ),
    _entry(
        scaled,
        lambda x, w: float(x) * _s(w) * 2,
        F64,
        (
            Arg("scalar", ("float", "int", "bool"), keyword="x"),
            Arg("vector", ("float", "int"), 2, "w", lists=True),
        ),
        call={"call_kwargs": {"factor": 2.0}},
    ),
    _entry(
        dtype_code,
        lambda x: 2 * float(x),
        F64,
        Arg("scalar", ("float", "int", "bool"), keyword="x"),
    ),
    _entry(
        Method(),
        lambda x: _s(x) * 3,
        F64,
        call={"method": "score", "call_kwargs": {"factor": 3.0}},
    ),
)
