"""ONNX models, run by ONNX Runtime on NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dask_infer.batch.inputs.integer_ranges import misfits
from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.formats.torch_module import Placement
from dask_infer.model.formats.zipmap import unzipped
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.methods import MissingMethodError
from dask_infer.spec.model_spec import ModelSpec

#: NumPy dtypes of the element types that arrays can have.
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}


def load_onnx(spec: ModelSpec, placement: Placement) -> OnnxModel:
    """Open an ONNX file in a session of its own."""
    if placement.dtype is not None:
        raise ModelLoadError(
            f"{spec.name}: the dtype of an ONNX model is part of its file; leave "
            "dtype= out or convert the file"
        )
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModelLoadError(
            f"{spec.name} needs {error.name}, which this process cannot import; "
            'pip install "dask-infer[onnx]" on the client and the workers'
        ) from error
    session = onnxruntime.InferenceSession(
        str(spec.path),
        sess_options=_options(onnxruntime),
        providers=_providers(onnxruntime, placement.device),
    )
    return OnnxModel(spec, session)


def _options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    # As many as torch takes in the thread that loads: the worker's share of cores.
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _providers(onnxruntime: Any, device: torch.device) -> list[Any]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    if device.type != "cuda":
        raise ModelLoadError(
            f"ONNX models run on the CPU or CUDA, not on {device.type}; pass "
            'device="cpu"'
        )
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise ModelLoadError(
            "this worker's onnxruntime cannot use CUDA; install onnxruntime-gpu or "
            'pass device="cpu"'
        )
    cuda = ("CUDAExecutionProvider", {"device_id": device.index or 0})
    return [cuda, "CPUExecutionProvider"]


class OnnxModel(LoadedModel):
    """A session; arrays in by position or name, arrays out by name."""

    def __init__(self, spec: ModelSpec, session: Any) -> None:
        super().__init__(spec, "numpy", session, spec.nbytes or _size(spec))
        self.inputs = {node.name: node for node in session.get_inputs()}
        self.outputs = [node.name for node in session.get_outputs()]
        self.accepts = frozenset(self.inputs)
        self.dtypes = tuple(
            (name, _DTYPES.get(node.type, "object"))
            for name, node in self.inputs.items()
        )

    def function(self, method: str | None) -> Callable[..., Any]:
        """Return the session as a function."""
        if method is not None:
            raise MissingMethodError(
                f"{self.spec.name}: an ONNX model has no method {method}; leave "
                "method= out"
            )
        return self._run

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        feed = self._feed(args, kwargs)
        results = [unzipped(each) for each in self.target.run(self.outputs, feed)]
        if len(results) == 1:
            return results[0]
        return dict(zip(self.outputs, results, strict=True))

    def _feed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        names = ", ".join(self.inputs)
        if len(args) > len(self.inputs):
            raise InputError(
                f"{self.spec.name} reads {len(self.inputs)} inputs ({names}), not "
                f"{len(args)}; pass columns= with as many"
            )
        given = {**dict(zip(self.inputs, args, strict=False)), **kwargs}
        unknown = sorted(set(given) - set(self.inputs))
        missing = sorted(set(self.inputs) - set(given))
        if unknown or missing:
            cause = (
                f"has no input {unknown[0]!r}"
                if unknown
                else f"got nothing for input {missing[0]!r}"
            )
            raise InputError(
                f"{self.spec.name} {cause}; its inputs are {names}: pass "
                "columns={input: column}"
            )
        return {name: _fit(value, self.inputs[name]) for name, value in given.items()}


def _fit(value: Any, node: Any) -> Any:
    """Cast to the input's own type and shape where no more than digits are lost."""
    array = np.asarray(value)
    wanted = np.dtype(_DTYPES.get(node.type, "object"))
    if array.dtype.kind in "UT":
        array = array.astype(object)
    if array.dtype != wanted and not _castable(array.dtype, wanted):
        raise InputError(
            f"input {node.name!r} of the ONNX model is {node.type}, but its column "
            f"holds {array.dtype}; cast the column"
        )
    wrong = misfits(array, wanted)
    if wrong is not None:
        raise InputError(
            f"input {node.name!r} of the ONNX model is {node.type}, which cannot hold "
            f"{array[wrong][0]!s}; cast the column, or export the model anew"
        )
    array = np.ascontiguousarray(array.astype(wanted, copy=False))
    is_column = len(node.shape) == 2 and not (
        isinstance(node.shape[1], int) and node.shape[1] != 1
    )
    return array[:, None] if array.ndim == 1 and is_column else array


def _castable(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    integers = given.kind in "iu" and wanted.kind in "iu"
    same_kind = integers or np.can_cast(given, wanted, "same_kind")
    return wanted.kind != "O" and same_kind


def _size(spec: ModelSpec) -> int:
    """Bytes of the file and of weights that it keeps beside itself."""
    path = Path(str(spec.path))
    beside = path.parent.glob(f"{path.name}*")
    return sum(os.path.getsize(file) for file in beside)
