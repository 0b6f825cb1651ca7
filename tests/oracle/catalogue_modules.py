"""The modules of the catalogue, and what one row gives."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pyarrow as pa
import torch
from torch import nn

from dask_infer import Ensemble, Towers
from tests.oracle.entries import Arg, Entry, Out, batch_of_one, first, module_alone
from tests.oracle.modules import (
    Answer,
    Bag,
    Buffered,
    Constant,
    Conv,
    Counting,
    Detections,
    Double,
    FirstOf,
    Half,
    Largest,
    Negate,
    Picky,
    Same,
    Sorted,
    Squeezed,
    Stateless,
    Turned,
    Twice,
    Two,
    Typed,
    Weighted,
    Wrong,
    hooked,
    seeded,
    used,
)

V2 = Arg("vector", ("float", "int", "bool"), 2, "x", lists=True)
F32, I64 = Out("float32"), Out("int64")


def _answer(found: Any) -> Any:
    if isinstance(found, tuple) and not hasattr(found, "_fields"):
        found = {"0": found[0], "1": found[1]}
        return first(found)
    names = ("logits", "label")
    get = found.get if isinstance(found, dict) else lambda n: getattr(found, n)
    return first({name: get(name) for name in names})


def _scalar(found: Any) -> float:
    return float(found.reshape(()))


def _entry(name: str, build: Any, args: Any, outputs: Any, **more: Any) -> Entry:
    make = seeded(build)
    pick = more.pop("pick", None)
    args = args if isinstance(args, tuple) else (args,)
    outputs = {"": outputs} if isinstance(outputs, Out) else outputs
    alone = more.pop("alone", None) or module_alone(make, pick)
    return Entry(name, make, args, outputs, alone, **more)


def _answers(kind: str) -> Entry:
    names = ("0", "1") if kind == "tuple" else ("logits", "label")
    outputs = dict(zip(names, (Out("float32", 1), I64), strict=True))
    return _entry(f"module {kind}", lambda: Answer(kind), V2, outputs, pick=_answer)


def _count(x: Any) -> int:
    return int(sum(abs(v) for v in x if v == v)) % 4


def _detected(x: Any) -> Any:
    boxes = [list(x)] * _count(x)
    return {"boxes": boxes, "labels": [box[0] > 0 for box in boxes]}


def _list(kind: Any) -> Out:
    return Out(pd.ArrowDtype(pa.list_(kind)), 1)


BOXES = {"boxes": _list(pa.list_(pa.float32(), 2)), "labels": _list(pa.bool_())}


def _twice(*values: Any) -> Any:
    total = float(sum(values[0]))
    return {"raw": total, "score": total}


def _typed(name: str, dtype: torch.dtype) -> Entry:
    return _entry(f"returns {name}", lambda: Typed(dtype), V2, Out(name))


def _label(outputs: list[int]) -> int:
    """The one most often given, the smallest of several."""
    return min(outputs, key=lambda label: (-outputs.count(label), label))


def _together(name: str, count: int, combine: Any, by_hand: Any, out: Out) -> Entry:
    """Several modules: an ensemble, or towers whose head is `combine`."""

    def build() -> list[nn.Module]:
        models = [nn.Linear(2, 1 if out is F32 else 3) for _ in range(count)]
        return models if out is F32 else [nn.Sequential(m, Largest()) for m in models]

    modules = seeded(build)

    def make() -> Any:
        if isinstance(combine, str):
            return Ensemble(modules(), combine)
        return Towers(dict(zip("xyz", modules(), strict=False)), head=combine)

    def alone(x: Any) -> Any:
        with torch.inference_mode():
            outputs = [module(*batch_of_one(x)).item() for module in modules()]
        return by_hand(outputs)

    # A tower has functions of its own, and here reads all columns.
    call = {"preprocess": None, "postprocess": None}
    forms = ("bare", "tuple", "none") if isinstance(combine, str) else ("none",)
    more = {"weight": 8, "call": call, "forms": forms, "models": count}
    return Entry(name, make, (V2,), {"": out}, alone, **more)


ENTRIES = (
    _together("mean of three", 3, "mean", lambda found: sum(found) / 3, F32),
    _together("vote of three", 3, "vote", _label, I64),
    _together("towers and head", 2, Weighted(), lambda found: 3 * sum(found), F32),
    _entry("linear", lambda: nn.Linear(2, 1), V2, F32, forms=("bare", "tuple", "none")),
    _entry(
        "linear wide",
        lambda: nn.Linear(3, 3),
        Arg("vector", ("float", "int", "bool"), 3, "input", lists=True),
        Out("float32", 1),
    ),
    _entry("squeezed", lambda: Squeezed(2), V2, F32, pick=_scalar),
    _entry(
        "squeezed one",
        lambda: Squeezed(1),
        Arg("vector", ("float", "int"), 1, "x"),
        F32,
        pick=_scalar,
    ),
    _entry("scalar", Double, Arg("scalar", ("float",), keyword="x"), F32),
    _entry("integer", Double, Arg("scalar", ("int",), keyword="x", integer=True), I64),
    _entry(
        "boolean",
        Negate,
        Arg("scalar", ("bool",), keyword="x", integer=True),
        Out("bool"),
    ),
    _entry(
        "embedding",
        Bag,
        Arg("vector", ("int",), 2, "x", integer=True),
        Out("float32", 1),
    ),
    _entry(
        "embedding one",
        Bag,
        Arg("scalar", ("int",), keyword="x", integer=True),
        Out("float32", 1),
    ),
    _entry(
        "two arguments",
        Two,
        (
            Arg("scalar", ("float",), keyword="x"),
            Arg("vector", ("float", "int"), 2, "w", lists=True),
        ),
        F32,
    ),
    *map(_answers, ("dict", "dataclass", "namedtuple", "tuple", "hidden")),
    _entry("returns its input", Same, V2, Out("float32", 1)),
    _entry("view of its input", FirstOf, V2, F32),
    _entry(
        "transposed view",
        Turned,
        Arg("vector", ("float",), 4, "x", lists=True),
        Out("float32", 2),
    ),
    _entry(
        "keeps its output",
        Buffered,
        V2,
        Out("float32", 1),
        alone=lambda x: [3 * v for v in x],
    ),
    _entry("was used", used, V2, Out("float32", 1), alone=lambda x: [3 * v for v in x]),
    _entry("one tensor twice", Twice, V2, {"raw": F32, "score": F32}, alone=_twice),
    _entry("keeps state", Counting, V2, Out("float32", 1)),
    _entry("bfloat16", Half, V2, Out("float32", 1), tolerance=1e-2),
    _entry(
        "double",
        lambda: nn.Linear(2, 2).double(),
        V2,
        Out("float64", 1),
        alone=lambda x: first(
            _double()(torch.tensor([x], dtype=torch.float64).detach()).detach()
        ),
        tolerance=1e-12,
        forms=("bare", "tuple", "none"),
    ),
    _entry(
        "float64 asked for",
        Stateless,
        V2,
        Out("float64"),
        alone=lambda x: sum(x) / 3,
        call={"dtype": "float64"},
        tolerance=1e-12,
    ),
    _entry("picky module", Picky, V2, F32, inferred=False),
    _entry("convolution", Conv, Arg("list", ("list",), 4, "x"), Out("float32", 1)),
    _typed("int32", torch.int32),
    _typed("int8", torch.int8),
    _typed("bool", torch.bool),
    _typed("float64", torch.float64),
    _typed("float16", torch.float16),
    _entry(
        "struct sequence",
        Sorted,
        V2,
        {"values": F32, "indices": I64},
        pick=lambda o: {"values": o.values.item(), "indices": o.indices.item()},
    ),
    _entry(
        "detections",
        lambda: Detections("dicts"),
        V2,
        BOXES,
        inferred=False,
        alone=_detected,
    ),
    _entry(
        "an array a row",
        lambda: Detections("arrays"),
        V2,
        _list(pa.float32()),
        inferred=False,
        alone=lambda x: [x[0]] * _count(x),
    ),
    _entry(
        "equal arrays",
        lambda: Detections("one array"),
        V2,
        Out(pd.ArrowDtype(pa.list_(pa.float32(), 2)), 1),
        inferred=False,
        alone=lambda x: [2 * v for v in x],
    ),
    _entry("expanded", Constant, V2, Out("float32", 1)),
    _entry("hooked", hooked, V2, Out("float32", 1), forms=("bare", "tuple", "none")),
    _entry("wrong count", lambda: Wrong("count"), V2, F32, inferred=False, structure=2),
    _entry(
        "wrong fields",
        lambda: Wrong("fields"),
        V2,
        {"y": F32, "z": F32},
        inferred=False,
        structure=1,
    ),
    _entry("wrong shape", lambda: Wrong("shape"), V2, F32, inferred=False, structure=1),
)

_double = ENTRIES[[e.name for e in ENTRIES].index("double")].make
