"""ONNX files, run by ONNX Runtime."""

from __future__ import annotations

from collections import defaultdict
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
from dask_infer.model.formats.format import FileCall, Format
from dask_infer.model.runtime.import_library import import_library
from dask_infer.model.runtime.place_module import Placement
from dask_infer.model.runtime.safetensors_files import damaged, refuse_empty
from dask_infer.model.shapes.trace_errors import cannot_trace
from dask_infer.model.shapes.traced_outputs import Traced
from dask_infer.spec.model_spec import ModelSpec

WHAT = "ONNX model"

#: Element types of ONNX by the names of their dtypes, where they differ.
_DTYPES = {"float": "float32", "double": "float64"}

#: Fields of ONNX's messages, by their numbers (onnx.proto).
_MODEL_FIELDS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_GRAPH, _NODE = 7, 1
_OUTPUT, _OPERATOR, _ATTRIBUTE = 2, 4, 5
_INTS, _STRINGS = 8, 9
_INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 5, 13, 1, 2


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
        try:
            numbers = set(_fields(_mapped(path)))
        except (IndexError, KeyError):
            numbers = set()
        if _GRAPH not in numbers or not numbers <= _MODEL_FIELDS:
            damaged(path, "is not a valid ONNX file (truncated?)")

    def files(self, path: Path) -> list[Path]:
        """Return the file and those beside it that its weights are in."""
        beside = (path.parent / place for place in _external_places(path))
        return [path, *filter(Path.exists, beside)]

    def declared_outputs(self, spec: ModelSpec, call: FileCall) -> Traced:
        """Return the outputs of the graph, its sizes worked out by the runtime."""
        if call.method is not None:
            raise no_method(spec, WHAT, call.method)
        session = _graph_of(spec, {})
        inputs = [_info(node) for node in session.get_inputs()]
        matched = GraphCall(spec.name, inputs, call, "export it with a dynamic axis 0")
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
        return matched.traced(outputs)

    def load(self, spec: ModelSpec, placement: Placement) -> OnnxModel:
        """Open the file in a session of its own."""
        onnxruntime = import_library("onnxruntime", what=spec.name)
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
        found = map(_unzipped, self.target.run(self._outputs, feed))
        return dict(zip(self._outputs, found, strict=True))


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
    onnxruntime = import_library("onnxruntime", what=spec.name)
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
    if len(found) < len(nodes):
        for name, width in _zipped_widths(str(spec.path)):
            found[name] = torch.empty(rows, width, device="meta")
    if not found:
        reason = f'output "{nodes[0].name}" is a {nodes[0].type}'
        raise cannot_trace(spec.name, reason)
    return found if len(nodes) > 1 else next(iter(found.values()))


# A ``ZipMap`` node of scikit-learn's exports makes a list of ``{label: probability}``
# of an ``(n, k)`` tensor. Here it becomes that tensor again, labels in order. How many
# there are ONNX Runtime does not show: it is read from the file.


def _unzipped(output: Any) -> Any:
    """Return a list of ``{label: number}`` as an array, all else as it is."""
    if not isinstance(output, list) or not output or not isinstance(output[0], dict):
        return output
    labels = sorted(output[0])
    rows = [[row[label] for label in labels] for row in output]
    return np.array(rows, dtype=np.float32)


def _zipped_widths(path: str) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of labels of each ``ZipMap`` node's output."""
    for graph in _fields(_mapped(path))[_GRAPH]:
        for node in map(_fields, _fields(graph)[_NODE]):
            if node[_OPERATOR] == [b"ZipMap"]:
                yield bytes(node[_OUTPUT][0]).decode(), _labels(node[_ATTRIBUTE])


def _labels(attributes: Sequence[memoryview]) -> int:
    """Count the labels that attributes list: texts, or numbers, which may be packed."""
    count = 0
    for attribute in map(_fields, attributes):
        count += len(attribute[_STRINGS])
        for one in attribute[_INTS]:
            count += 1 if isinstance(one, int) else sum(byte < 128 for byte in one)
    return count


def _external_places(path: Path) -> list[str]:
    """Return the files that a graph reads weights from, relative to its own."""
    places = set()
    for graph in map(_fields, _fields(_mapped(path))[_GRAPH]):
        for tensor in map(_fields, graph[_INITIALIZER]):
            for entry in map(_fields, tensor[_EXTERNAL_DATA]):
                if entry[_KEY] == [b"location"]:
                    places.add(bytes(entry[_VALUE][0]).decode())
    return sorted(places)


def _mapped(path: str | Path) -> memoryview:
    return np.memmap(path, mode="r").data


def _fields(data: memoryview) -> defaultdict[int, list[Any]]:
    """Return the values of a message of protocol buffers by their fields' numbers.

    Texts, messages and packed lists are views: weights inside a file cost nothing.

    Raises
    ------
    IndexError, KeyError
        It is none, or cut off.
    """
    found, place = defaultdict(list), 0
    while place < len(data):
        value: Any
        key, place = _varint(data, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(data, place)
        else:
            fixed = {1: 8, 5: 4}
            size, place = _varint(data, place) if wire == 2 else (fixed[wire], place)
            value, place = data[place : place + size], place + size
        found[key >> 3].append(value)
    if place > len(data):
        raise IndexError
    return found


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return a number of any length, and where it ends."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
