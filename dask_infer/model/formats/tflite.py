"""TensorFlow Lite files, run by LiteRT on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.formats.array_graph import (
    ArrayInfo,
    GraphCall,
    GraphModel,
    no_method,
    only_or_all,
    output_on_meta,
)
from dask_infer.model.formats.format import FileCall, Format
from dask_infer.model.runtime.import_library import import_library
from dask_infer.model.runtime.place_module import Placement
from dask_infer.model.runtime.safetensors_files import damaged, refuse_empty
from dask_infer.model.shapes.trace_errors import cannot_trace
from dask_infer.model.shapes.traced_outputs import Traced
from dask_infer.spec.model_spec import ModelSpec

WHAT = "TensorFlow Lite model"

#: What bytes 4 to 8 of a file are.
_IDENTIFIER = b"TFL3"

_REMEDY = "convert it again with a dynamic batch size"


class TFLiteFormat(Format):
    """A graph with its weights in one file."""

    kind = "tflite"
    pattern = "*.tflite"
    suffixes = (".tflite",)
    extra = "tflite"
    libraries = ("ai_edge_litert",)
    has_dtype = False
    on_host = True
    declares_outputs = True

    def check(self, path: Path, trust: bool) -> None:
        """Refuse a file that does not begin as such files do."""
        refuse_empty(path)
        with path.open("rb") as file:
            if file.read(8)[4:] != _IDENTIFIER:
                damaged(path, "is not a valid TensorFlow Lite file")

    def declared_outputs(self, spec: ModelSpec, call: FileCall) -> Traced:
        """Return the outputs as the file declares them, or as the runtime finds."""
        if call.method is not None:
            raise no_method(spec, WHAT, call.method)
        graph = _Graph(spec, threads=1)
        matched = GraphCall(spec.name, graph.inputs, call, _REMEDY)
        if any(size is None for info in graph.outputs for size in info.shape[1:]):
            try:
                graph.resize(matched.sizes)
            except (RuntimeError, ValueError) as error:
                reason = _misfit(spec, matched.sizes, error)
                raise cannot_trace(spec.name, reason) from error
        outputs = {
            info.name: output_on_meta(spec.name, info, info.shape, call.counts[0])
            for info in graph.outputs
        }
        return matched.traced(only_or_all(outputs))

    def load(self, spec: ModelSpec, placement: Placement) -> TFLiteModel:
        """Open the file in an interpreter of its own."""
        if placement.device.type != "cpu":
            raise ModelLoadError(
                f"{spec.name}: TensorFlow Lite models run on the CPU, not on "
                f'{placement.device.type}; pass device="cpu"'
            )
        # As many as torch takes in the thread that loads: the worker's share of cores.
        return TFLiteModel(spec, _Graph(spec, torch.get_num_threads()))


class _Graph:
    """The main graph of a file in an interpreter; for one thread at a time."""

    def __init__(self, spec: ModelSpec, threads: int) -> None:
        library = import_library("ai_edge_litert.interpreter", what=spec.name)
        try:
            self._interpreter = library.Interpreter(
                model_path=str(spec.path), num_threads=threads
            )
        except ValueError as error:
            damaged(
                Path(str(spec.path)),
                f"is not a valid TensorFlow Lite file (truncated?): {error}",
            )
        #: Shapes of the inputs that memory is allocated for.
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._inputs, self._outputs = self._places()

    @property
    def inputs(self) -> list[ArrayInfo]:
        """The inputs, in order."""
        details = self._interpreter.get_input_details()
        return [_info(name, details, at) for name, at in self._inputs.items()]

    @property
    def outputs(self) -> list[ArrayInfo]:
        """The outputs, in order; as large as the inputs, once these have a size."""
        details = self._interpreter.get_output_details()
        if self._sizes:
            details = [{**d, "shape_signature": d["shape"]} for d in details]
        return [_info(name, details, at) for name, at in self._outputs.items()]

    def resize(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        """Allocate memory for inputs of these shapes, unless it is there.

        Raises
        ------
        RuntimeError, ValueError
            The graph does not run with them.
        """
        if sizes == self._sizes:
            return
        self._sizes = {}
        for name, shape in sizes.items():
            self._interpreter.resize_tensor_input(self._inputs[name], shape)
        self._interpreter.allocate_tensors()
        self._sizes = dict(sizes)

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return all outputs by name, in memory of their own."""
        for name, array in feed.items():
            self._interpreter.set_tensor(self._inputs[name], array)
        self._interpreter.invoke()
        return {
            name: self._interpreter.get_tensor(at) for name, at in self._outputs.items()
        }

    def _places(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the tensors of inputs and outputs by their names.

        Converters write names of their own into the graph (``serving_default_x:0``)
        and those of the user's function into its signature.
        """
        graph = self._interpreter
        inputs, outputs = graph.get_input_details(), graph.get_output_details()
        for key in graph.get_signature_list():
            runner = graph.get_signature_runner(key)
            taken = _by_name(runner.get_input_details(), inputs)
            given = _by_name(runner.get_output_details(), outputs)
            if len(taken) == len(inputs) and len(given) == len(outputs):
                return taken, given
        own = [{d["name"]: d for d in details} for details in (inputs, outputs)]
        return _by_name(own[0], inputs), _by_name(own[1], outputs)


def _by_name(
    signature: Mapping[str, Mapping[str, Any]], details: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """Return tensors of the graph by the signature's names, in the graph's order."""
    names = {detail["index"]: name for name, detail in signature.items()}
    places = (detail["index"] for detail in details)
    return {names[place]: place for place in places if place in names}


def _info(name: str, details: Sequence[Mapping[str, Any]], place: int) -> ArrayInfo:
    detail = next(detail for detail in details if detail["index"] == place)
    sizes = detail["shape_signature"]
    sizes = sizes if len(sizes) else detail["shape"]
    shape = tuple(None if size < 0 else int(size) for size in sizes)
    dtype = np.dtype(detail["dtype"])
    return ArrayInfo(name, "string" if dtype.kind in "OSU" else dtype.name, shape)


class TFLiteModel(GraphModel):
    """A graph in its interpreter: the calls of several threads wait for each other."""

    def __init__(self, spec: ModelSpec, graph: _Graph) -> None:
        super().__init__(spec, graph, graph.inputs, WHAT)
        self._one_call = threading.Lock()

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return all outputs by name."""
        graph: _Graph = self.target
        sizes = {name: array.shape for name, array in feed.items()}
        with self._one_call:
            try:
                graph.resize(sizes)
            except (RuntimeError, ValueError) as error:
                raise InputError(_misfit(self.spec, sizes, error)) from error
            return graph.run(feed)


def _misfit(
    spec: ModelSpec, sizes: Mapping[str, tuple[int, ...]], error: Exception
) -> str:
    shapes = ", ".join(map(str, sizes.values()))
    return (
        f"{spec.name} does not run with inputs of shape {shapes} ({error}); {_REMEDY}"
    )
