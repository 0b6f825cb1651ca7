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
        model = TFLiteModel(spec, threads=1)
        matched = GraphCall(spec.name, [*model.inputs.values()], call, _REMEDY)
        if any(size is None for info in model.outputs for size in info.shape[1:]):
            try:
                model.resize(matched.sizes)
            except InputError as error:
                raise cannot_trace(spec.name, str(error)) from error
        outputs = {
            info.name: output_on_meta(spec.name, info, info.shape, call.counts[0])
            for info in model.outputs
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
        return TFLiteModel(spec, torch.get_num_threads())


class TFLiteModel(GraphModel):
    """A graph in its interpreter: the calls of several threads wait for each other."""

    def __init__(self, spec: ModelSpec, threads: int) -> None:
        library = import_library("ai_edge_litert.interpreter", what=spec.name)
        try:
            graph = library.Interpreter(model_path=str(spec.path), num_threads=threads)
        except ValueError as error:
            damaged(
                Path(str(spec.path)),
                f"is not a valid TensorFlow Lite file (truncated?): {error}",
            )
        #: Places of the graph's inputs and outputs by their names.
        self._inputs, self._outputs = _places(graph)
        inputs = _infos(self._inputs, graph.get_input_details())
        super().__init__(spec, graph, inputs, WHAT)
        #: Shapes of the inputs that memory is allocated for.
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._one_call = threading.Lock()

    @property
    def outputs(self) -> list[ArrayInfo]:
        """The outputs, in order; as large as the inputs, once these have a size."""
        details = self.target.get_output_details()
        if self._sizes:
            details = [{**d, "shape_signature": d["shape"]} for d in details]
        return _infos(self._outputs, details)

    def resize(self, sizes: Mapping[str, tuple[int, ...]]) -> None:
        """Allocate memory for inputs of these shapes, unless it is there.

        Raises
        ------
        InputError
            The graph does not run with them.
        """
        if sizes == self._sizes:
            return
        self._sizes = {}
        try:
            for name, shape in sizes.items():
                self.target.resize_tensor_input(self._inputs[name], shape)
            self.target.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            shapes = ", ".join(map(str, sizes.values()))
            raise InputError(
                f"{self.spec.name} does not run with inputs of shape {shapes} "
                f"({error}); {_REMEDY}"
            ) from error
        self._sizes = dict(sizes)

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return all outputs by name, in memory of their own."""
        graph = self.target
        with self._one_call:
            self.resize({name: array.shape for name, array in feed.items()})
            for name, array in feed.items():
                graph.set_tensor(self._inputs[name], array)
            graph.invoke()
            return {name: graph.get_tensor(at) for name, at in self._outputs.items()}


def _places(graph: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Return the tensors of inputs and outputs by their names.

    Converters write names of their own into the graph (``serving_default_x:0``) and
    those of the user's function into its signature.
    """
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


def _infos(
    places: Mapping[str, int], details: Sequence[Mapping[str, Any]]
) -> list[ArrayInfo]:
    found = {detail["index"]: detail for detail in details}
    return [_info(name, found[place]) for name, place in places.items()]


def _info(name: str, detail: Mapping[str, Any]) -> ArrayInfo:
    sizes = detail["shape_signature"]
    sizes = sizes if len(sizes) else detail["shape"]
    shape = tuple(None if size < 0 else int(size) for size in sizes)
    dtype = np.dtype(detail["dtype"])
    return ArrayInfo(name, "string" if dtype.kind in "OSU" else dtype.name, shape)
