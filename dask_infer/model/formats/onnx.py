"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.array_graph import (
    ArrayInfo,
    GraphCall,
    GraphModel,
    no_method,
    output_on_meta,
)
from dask_infer.model.formats.format import Declared, FileCall, Format
from dask_infer.model.runtime.import_library import import_library
from dask_infer.model.runtime.place_module import Placement
from dask_infer.model.runtime.safetensors_files import damaged, refuse_empty
from dask_infer.model.shapes.trace_errors import cannot_trace
from dask_infer.spec.model_spec import ModelSpec

WHAT = "ONNX model"

#: Element types of ONNX by the names of their dtypes, where they differ.
_DTYPES = {"float": "float32", "double": "float64"}

#: What a ZipMap node makes of probabilities.
_ZIPPED = re.compile(r"seq\(map\((int64|string),tensor\(float\)\)\)")

#: Fields of ONNX's messages, by their numbers (onnx.proto).
_MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_GRAPH, _NODE = 7, 1
_OUTPUT, _OPERATOR, _ATTRIBUTE = 2, 4, 5
_INTS, _STRINGS = 8, 9


class OnnxFormat(Format):
    """A graph file; weights beyond 2 GB lie beside it."""

    kind = "onnx"
    pattern = "*.onnx"
    suffixes = (".onnx",)
    extra = "onnx"
    libraries = ("onnxruntime",)
    has_dtype = False
    declares_outputs = True

    def takes_host(self) -> bool:
        """Whether the installed onnxruntime is one for CPUs, or there is none."""
        try:
            import onnxruntime
        except ImportError:
            return True
        return "CUDAExecutionProvider" not in onnxruntime.get_available_providers()

    def check(self, path: Path, trust: bool) -> None:
        """Refuse a file that is not one whole message of protocol buffers."""
        refuse_empty(path)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=1) as data:
            if not _is_whole(data):
                damaged(path, "is not a valid ONNX file (truncated?)")

    def files(self, path: Path) -> list[Path]:
        """Return the file and the weights beside it."""
        return [path, *sorted(path.parent.glob(f"{path.stem}*data*"))]

    def declared_outputs(self, spec: ModelSpec, call: FileCall) -> Declared:
        """Return the outputs of the graph, its sizes worked out by the runtime."""
        if call.method is not None:
            raise no_method(spec, WHAT, call.method)
        session = _graph_of(spec, {})
        inputs = [_info(node) for node in session.get_inputs()]
        remedy = "export it with a dynamic axis 0"
        matched = GraphCall(spec.name, inputs, call, remedy)
        bound = {
            size: given
            for info in matched.inputs.values()
            for size, given in zip(info.shape, matched.sizes[info.name], strict=False)
            if isinstance(size, str)
        }
        nodes = session.get_outputs()
        named = {size for node in nodes for size in node.shape if isinstance(size, str)}
        if named - set(bound):
            nodes = _graph_of(spec, bound).get_outputs()  # it works out "2*tokens"
        outputs = _outputs(spec, nodes, bound, call.counts[0])
        return outputs, matched.floating, matched.integers

    def load(self, spec: ModelSpec, placement: Placement) -> OnnxModel:
        """Open the file in a session of its own."""
        onnxruntime = _runtime(spec)
        options = onnxruntime.SessionOptions()
        # As many as torch takes in the thread that loads: the worker's share of cores.
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = _providers(onnxruntime, placement.device)
        return OnnxModel(
            spec, onnxruntime.InferenceSession(str(spec.path), options, providers)
        )


class OnnxModel(GraphModel):
    """A session, which any number of threads may run at once."""

    def __init__(self, spec: ModelSpec, session: Any) -> None:
        inputs = [_info(node) for node in session.get_inputs()]
        super().__init__(spec, session, inputs, WHAT)
        self._outputs = [node.name for node in session.get_outputs()]

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return all outputs by name."""
        found = map(unzipped, self.target.run(self._outputs, feed))
        return dict(zip(self._outputs, found, strict=True))


def _runtime(spec: ModelSpec) -> Any:
    return import_library("onnxruntime", what=spec.name)


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


def _graph_of(spec: ModelSpec, sizes: Mapping[str, int]) -> Any:
    """Open the graph as written, the sizes that are known so far fixed."""
    onnxruntime = _runtime(spec)
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    return onnxruntime.InferenceSession(
        str(spec.path), options, providers=["CPUExecutionProvider"]
    )


def _info(node: Any) -> ArrayInfo:
    """Return an input or output: ``tensor(int64)`` is ``int64``."""
    name = str(node.type).removeprefix("tensor(").removesuffix(")")
    return ArrayInfo(node.name, _DTYPES.get(name, name), tuple(node.shape))


def _outputs(
    spec: ModelSpec, nodes: Sequence[Any], bound: Mapping[str, int], rows: int
) -> Any:
    """Return arrays by name, or the only one; other sequences are left out."""
    found = {}
    for node in nodes:
        if node.type.startswith("tensor"):
            info = _info(node)
            sizes = [bound.get(str(size), size) for size in info.shape]
            found[node.name] = output_on_meta(spec.name, info, sizes, rows)
    if any(_ZIPPED.fullmatch(node.type) for node in nodes):
        widths = zipped_widths(str(spec.path))
        for node in nodes:
            if node.name in widths:
                shape = (rows, widths[node.name])
                found[node.name] = torch.empty(shape, device="meta")
    if not found:
        reason = f'output "{nodes[0].name}" is a {nodes[0].type}'
        raise cannot_trace(spec.name, reason)
    return found if len(nodes) > 1 else next(iter(found.values()))


# Probabilities that scikit-learn's exports zip with the labels of their classes.
#
# A ``ZipMap`` node makes a list of ``{label: probability}`` of an ``(n, k)`` tensor.
# Here it becomes that tensor again, in the order of the labels. How many there are only
# the node's attributes say, which ONNX Runtime does not show: they are read from the
# file.


def unzipped(output: Any) -> Any:
    """Return a list of ``{label: number}`` as an array, all else as it is."""
    if not isinstance(output, list) or not output or not isinstance(output[0], dict):
        return output
    labels = sorted(output[0])
    rows = [[row[label] for label in labels] for row in output]
    return np.array(rows, dtype=np.float32)


def zipped_widths(path: str | Path) -> dict[str, int]:
    """Return how many labels each output of a ``ZipMap`` node has, by its name."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=1) as data:
        return dict(_widths(data))


def _widths(data: mmap.mmap) -> Iterator[tuple[str, int]]:
    for _, graph in _fields(data, (0, len(data)), _GRAPH):
        for _, node in _fields(data, graph, _NODE):
            names = [data[slice(*at)] for _, at in _fields(data, node, _OPERATOR)]
            if names == [b"ZipMap"]:
                ((_, name), *_) = _fields(data, node, _OUTPUT)
                yield data[slice(*name)].decode(), _labels(data, node)


def _labels(data: mmap.mmap, node: tuple[int, int]) -> int:
    """Count the labels that a node's attributes list."""
    count = 0
    for _, attribute in _fields(data, node, _ATTRIBUTE):
        count += len(list(_fields(data, attribute, _STRINGS)))
        for packed, (start, stop) in _fields(data, attribute, _INTS):
            ends = sum(byte < 128 for byte in data[start:stop])
            count += ends if packed else 1
    return count


def _fields(
    data: mmap.mmap, within: tuple[int, int], wanted: int
) -> Iterator[tuple[bool, tuple[int, int]]]:
    """Yield where the values of a field stand in a message of protocol buffers.

    With each comes whether it is of a length of its own: text, a message, a packed
    list.
    """
    for number, sized, place in _all_fields(data, within):
        if number == wanted:
            yield sized, place


def _all_fields(
    data: mmap.mmap, within: tuple[int, int]
) -> Iterator[tuple[int, bool, tuple[int, int]]]:
    """Yield number, form and place of each value of a message.

    Values are not read, so weights inside the file cost nothing.
    """
    place, stop = within
    while place < stop:
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        start = place
        if wire == 0:
            _, place = _varint(data, place)
        elif wire == 2:
            size, start = _varint(data, place)
            place = start + size
        else:
            place += {1: 8, 5: 4}[wire]
        yield number, wire == 2, (start, place)


def _is_whole(data: mmap.mmap) -> bool:
    """Whether all bytes are the fields of a model, a graph among them."""
    end, numbers = 0, set()
    try:
        for number, _, place in _all_fields(data, (0, len(data))):
            if number not in _MODEL_FIELDS:
                return False
            numbers.add(number)
            end = place[1]
    except (IndexError, KeyError):
        return False
    return end == len(data) and _GRAPH in numbers


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """Return a number of any length, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
