"""Callables and classes of the catalogue: NumPy in, anything out."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

Pair = namedtuple("Pair", ["p", "q"])


@dataclass
class Record:
    p: Any
    q: Any


def total(x: Any) -> Any:
    return x.astype("float64").sum(1)


def total_list(x: Any) -> Any:
    return [float(v) for v in total(x)]


def total_column(x: Any) -> Any:
    return total(x)[:, None]


def total_squeezed(x: Any) -> Any:
    return np.squeeze(total_column(x))


def total_series(x: Any) -> Any:
    return pd.Series(total(x), index=range(5, 5 + len(x)))


def total_tensor(x: Any) -> Any:
    return torch.tensor(total(x))


def total_items(x: Any) -> Any:
    return [torch.tensor(v) for v in total(x)]


def read_only(x: Any) -> Any:
    y = total(x)
    y.flags.writeable = False
    return y


def as_frame(x: Any) -> Any:
    return pd.DataFrame({"p": total(x), "q": -total(x)})


def as_dict(x: Any) -> Any:
    return {"p": total(x), "q": -total(x), "extra": 3}


def as_dicts(x: Any) -> Any:
    return [{"p": v, "q": -v} for v in total(x).tolist()]


def as_records(x: Any) -> Any:
    return [Record(v, -v) for v in total(x).tolist()]


def as_record(x: Any) -> Any:
    return Record(total(x), -total(x))


def as_pairs(x: Any) -> Any:
    return [Pair(v, -v) for v in total(x).tolist()]


def as_arrays(x: Any) -> Any:
    """One array a row, two numbers each."""
    return [np.array([v, -v]) for v in total(x)]


def as_block(x: Any) -> Any:
    return np.stack([total(x), -total(x)], 1)


def as_tuple(x: Any) -> Any:
    return total(x), -total(x)


def as_structured(x: Any) -> Any:
    y = np.zeros(len(x), [("p", "f8"), ("q", "f8")])
    y["p"], y["q"] = total(x), -total(x)
    return y


def as_arrow(x: Any) -> Any:
    return pa.table({"p": total(x), "q": -total(x)})


def labels(x: Any) -> Any:
    return ["up" if v > 0 else "down" for v in np.nan_to_num(total(x))]


def label_array(x: Any) -> Any:
    return np.array(labels(x))


def label_objects(x: Any) -> Any:
    return np.array(labels(x), object)


def scored(x: Any) -> Any:
    return labels(x), total(x)


def vectors(x: Any) -> Any:
    return np.stack([total(x)] * 3, 1)


def vector_list(x: Any) -> Any:
    return [np.array([v, v, v]) for v in total(x)]


def vector_lists(x: Any) -> Any:
    return [[v, v, v] for v in total(x).tolist()]


def own_rows(x: Any) -> Any:
    """A view of what it was given."""
    return x[:, 0]


KEPT = np.zeros(64)


def refilled(x: Any) -> Any:
    """A view of a buffer that the next call fills."""
    KEPT[: len(x)] = total(x)
    return KEPT[: len(x)]


def picky(x: Any) -> Any:
    if (x.astype(float) < -3).any():
        raise KeyError("below -3")
    return total(x)


def gappy(x: Any) -> Any:
    return [None if v < 0 else v for v in total(x).tolist()]


def repeats(x: Any) -> Any:
    """As many numbers as the row's first value says."""
    return [[float(v)] * n for v, n in zip(total(x), sizes(x), strict=True)]


def repeat_arrays(x: Any) -> Any:
    return [np.full(n, v) for v, n in zip(total(x), sizes(x), strict=True)]


def sizes(x: Any) -> Any:
    return np.abs(np.nan_to_num(total(x))).astype(int) % 4


def structs(x: Any) -> Any:
    return [{"p": v, "s": f"{v:.2f}"} for v in total(x).tolist()]


def struct_lists(x: Any) -> Any:
    return [
        [{"p": v, "s": "a"}] * n
        for v, n in zip(total(x).tolist(), sizes(x), strict=True)
    ]


def maps(x: Any) -> Any:
    return [[("a", v)] for v in total(x).tolist()]


def decimals(x: Any) -> Any:
    import decimal

    return [decimal.Decimal(f"{v:.2f}") for v in np.nan_to_num(total(x)).tolist()]


def integers(x: Any) -> Any:
    return np.floor(np.nan_to_num(total(x))).astype("int64")


def booleans(x: Any) -> Any:
    return total(x) > 0


def dates(x: Any) -> Any:
    days = integers(x).astype("timedelta64[D]")
    return (np.datetime64("2026-01-01") + days).astype("datetime64[ns]")


def mean_of_all(x: Any) -> Any:
    """One number for all rows."""
    return np.array([total(x).mean()])


def one_short(x: Any) -> Any:
    return total(x)[:-1]


def scalar_of_all(x: Any) -> Any:
    return float(total(x).mean())


def nothing(x: Any) -> Any:
    return None


def words(x: Any) -> Any:
    return np.array(["a"] * len(x))


def lengths(texts: list[str]) -> Any:
    return [len(t) for t in texts]


def upper(texts: list[str]) -> Any:
    return [t.upper() for t in texts]


def no_empty(texts: list[str]) -> Any:
    if not all(texts):
        raise ValueError("empty text")
    return np.array([len(t) for t in texts])


def byte_lengths(blobs: Any) -> Any:
    return [len(b) for b in blobs]


def id_sums(rows: Any) -> Any:
    return np.array([int(np.asarray(r).sum()) for r in rows])


def ids_again(rows: Any) -> Any:
    """What it was given, ragged."""
    return [np.asarray(r) * 2 for r in rows]


def scaled(x: Any, w: Any, factor: float = 1.0) -> Any:
    return x.astype("float64") * w.astype("float64").sum(1) * factor


def dtype_code(x: Any) -> Any:
    """What a callable may rely on: numbers, one row each."""
    assert isinstance(x, np.ndarray) and x.ndim == 1
    return x.astype("float64") * 2


class Built:
    """Built once on each worker; keeps a buffer and a count."""

    def __init__(self) -> None:
        self.calls = 0
        self.kept: Any = None

    def __call__(self, x: Any) -> Any:
        self.calls += 1
        if self.kept is None or len(self.kept) != len(x):
            self.kept = np.empty(len(x))
        self.kept[:] = total(x)
        return self.kept


class Method:
    """An object with a method of another name."""

    def score(self, x: Any, factor: float = 1.0) -> Any:
        return total(x) * factor

    def __call__(self, x: Any) -> Any:
        raise AssertionError("the method was asked for")
