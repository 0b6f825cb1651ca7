"""Models from files and factories, and code around a model."""

from __future__ import annotations

import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from torch import nn

from dask_infer import InputError, ModelSource
from tests.oracle.catalogue_modules import V2
from tests.oracle.entries import Arg, Entry, Out, first, module_alone
from tests.oracle.functions import Built
from tests.oracle.modules import Double, Squeezed, seeded

base = seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh()))


@cache
def place() -> Path:
    """Return the directory of this process."""
    folder = tempfile.TemporaryDirectory(prefix="oracle")
    _open.append(folder)
    return Path(folder.name)


_open: list[Any] = []


@cache
def script() -> Any:
    path = place() / "script.pt"
    torch.jit.trace(base(), torch.ones(3, 2)).save(path)  # type: ignore[no-untyped-call]
    return ModelSource.from_path(str(path), trust=True)


@cache
def program() -> Any:
    path = place() / "program.pt2"
    rows = torch.export.Dim("rows", min=1)
    exported = torch.export.export(
        base(), (torch.ones(3, 2),), dynamic_shapes=({0: rows},)
    )
    torch.export.save(exported, path)
    return ModelSource.from_path(str(path), trust=True)


@cache
def onnx_linear() -> str:
    """``x @ w`` as a graph."""
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.array([[1.0], [2.0]], "float32"), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return _onnx("linear", [node], [x], [y], [weight])


@cache
def onnx_integers() -> str:
    """An identity of int32."""
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.INT32, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, ["n"])
    return _onnx("integers", [helper.make_node("Identity", ["x"], ["y"])], [x], [y])


def _onnx(name: str, nodes: Any, inputs: Any, outputs: Any, weights: Any = ()) -> str:
    import onnx
    from onnx import helper

    graph = helper.make_graph(nodes, name, inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, str(place() / f"{name}.onnx"))
    return str(place() / f"{name}.onnx")


@cache
def factory() -> Any:
    return ModelSource.from_factory(_built, 2)


def _built(k: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Squeezed(k)


@cache
def compiled() -> Any:
    return torch.compile(base(), backend="eager")


#: A buffer a thread: two that fill one at a time are wrong by themselves.
KEPT = threading.local()


def refilled(frame: pd.DataFrame) -> torch.Tensor:
    """A `preprocess` that refills one tensor."""
    values = frame.iloc[:, 0].astype("float64").to_numpy()
    if not hasattr(KEPT, "block"):
        KEPT.block = torch.zeros(64)
    KEPT.block[: len(values)] = torch.tensor(values, dtype=torch.float32)
    return KEPT.block[: len(values)]


def added(frame: pd.DataFrame) -> pd.DataFrame:
    """A `preprocess` that changes values."""
    return frame + 1


def as_array(frame: pd.DataFrame) -> Any:
    """A `preprocess` that returns an array."""
    return frame.astype("float64").to_numpy() * 2


def normalised(output: Any, frame: pd.DataFrame) -> Any:
    """A `postprocess` that computes."""
    return output.softmax(-1)


def in_place(output: Any, frame: pd.DataFrame, inputs: Any) -> Any:
    """A `postprocess` that writes into what it was given."""
    output += inputs.args[0][:, :1] if hasattr(inputs, "args") else 0
    return output


def named(output: Any, frame: pd.DataFrame) -> Any:
    """A `postprocess` that reads the rows."""
    return {"total": output.sum(-1), "labels": [str(len(frame.columns))] * len(frame)}


def _refuse_large(limit: int) -> Any:
    def alone(v: int) -> int:
        if v > limit:
            raise InputError("too large")
        return v

    return alone


def _softmax(x: Any) -> Any:
    model = base()
    with torch.inference_mode():
        return model(torch.tensor([x], dtype=torch.float32)).softmax(-1)[0].tolist()


def _named(x: Any) -> Any:
    model = base()
    with torch.inference_mode():
        total = model(torch.tensor([x], dtype=torch.float32)).sum().item()
    return {"total": total, "labels": "2"}


def _same(module: Any) -> Any:
    return module_alone(lambda: module)


def _doubled(make: Any, change: Any) -> Any:
    def alone(x: Any) -> Any:
        changed = [change(v) for v in x]
        model = make()
        with torch.inference_mode():
            return first(model(torch.tensor([changed], dtype=torch.float32)))

    return alone


F32, VECTOR = Out("float32"), Out("float32", 1)
PLAIN = Arg("vector", ("float", "int"), 2, "x")
LARGE = st.sampled_from((1, 5, 2**31 - 1, 2**31, 2**32 + 5))
HUGE = st.sampled_from((1, 5, 2**63 - 1, 2**63 + 1))


def _whole(values: Any, dtype: str) -> Arg:
    return Arg(
        "scalar", ("int",), keyword="x", integer=True, missing=False,
        values=values, dtypes=(dtype,),
    )  # fmt: skip


ENTRIES = (
    Entry(
        "TorchScript",
        script,
        (PLAIN,),
        {"": VECTOR},
        module_alone(base),
        forms=("bare", "tuple", "none"),
        inferred=True,
    ),
    Entry(
        "exported program",
        program,
        (PLAIN,),
        {"": VECTOR},
        module_alone(base),
        forms=("bare", "tuple", "none"),
        weight=2,
    ),
    Entry("onnx", onnx_linear, (PLAIN,), {"": F32}, lambda x: x[0] + 2 * x[1]),
    Entry(
        "onnx integers",
        onnx_integers,
        (_whole(LARGE, "int64"),),
        {"": Out("int32")},
        _refuse_large(2**31 - 1),
    ),
    Entry(
        "huge integers",
        seeded(lambda: nn.Identity()),
        (_whole(HUGE, "uint64"),),
        {"": Out("int64")},
        _refuse_large(2**63 - 1),
        forms=("bare", "tuple", "none", "series"),
    ),
    Entry(
        "factory",
        factory,
        (PLAIN,),
        {"": F32},
        module_alone(lambda: _built(2), lambda o: float(o.reshape(()))),
        inferred=False,
    ),
    Entry(
        "class",
        lambda: Built,
        (PLAIN,),
        {"": Out("float64")},
        lambda x: float(sum(x)),
        reads="numpy",
        inferred=False,
    ),
    Entry(
        "compiled",
        compiled,
        (PLAIN,),
        {"": VECTOR},
        module_alone(base),
        weight=1,
        forms=("bare", "tuple", "none"),
    ),
    Entry(
        "refilled by preprocess",
        seeded(Double),
        (Arg("scalar", ("float",), missing=False),),
        {"": F32},
        lambda x: 2 * x,
        inferred=False,
        call={"preprocess": refilled},
        forms=("bare", "none", "series"),
    ),
    Entry(
        "added by preprocess",
        base,
        (
            Arg(
                "vector",
                ("float",),
                2,
                dtypes=("float64", "float32", "Float64"),
                missing=False,
            ),
        ),
        {"": VECTOR},
        _doubled(base, lambda v: v + 1),
        call={"preprocess": added},
        forms=("bare", "none"),
    ),
    Entry(
        "array by preprocess",
        base,
        (Arg("vector", ("float", "int"), 2),),
        {"": VECTOR},
        _doubled(base, lambda v: v * 2),
        call={"preprocess": as_array},
        forms=("bare", "none"),
    ),
    Entry(
        "softmax after",
        base,
        (V2,),
        {"": VECTOR},
        _softmax,
        call={"postprocess": normalised},
        forms=("bare", "tuple", "none"),
    ),
    Entry(
        "named after",
        base,
        (PLAIN,),
        {"total": F32, "labels": Out("string")},
        _named,
        inferred=False,
        call={"postprocess": named},
        forms=("bare", "tuple", "none"),
    ),
)
