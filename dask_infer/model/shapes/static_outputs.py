"""Formats whose files say what they return: ONNX and sentence-transformers."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.zipmap import zipped_widths
from dask_infer.model.runtime.footprint import parse_dtype
from dask_infer.model.shapes.trace_errors import (
    TWO,
    ArityMismatch,
    Example,
    ShapeMismatch,
    cannot_trace,
    label,
)
from dask_infer.spec import ModelSpec

#: Output, name of the floating dtype, arguments that go in as integers.
Declared = tuple[Any, str, tuple[int | str, ...]]

#: Element types of ONNX by the names of their dtypes.
_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "string",
}

#: What a ZipMap node makes of probabilities.
_ZIPPED = re.compile(r"seq\(map\((int64|string),tensor\(float\)\)\)")

#: Modules of sentence-transformers that keep the width of an embedding.
_KEEP = ("Transformer", "Normalize", "Dropout", "LayerNorm")


def declared_outputs(
    spec: ModelSpec,
    examples: Mapping[int | str, Example],
    counts: tuple[int, int],
    dtype: str | None = None,
) -> Declared:
    """Return what the model's files declare, for counts of rows and of tokens.

    Raises
    ------
    CannotTrace
        They leave it open.
    ArityMismatch, ShapeMismatch
        The inputs are not those that the files declare.
    """
    if spec.kind == "onnx":
        return _Graph(spec, counts).declared(examples)
    folder = Path(str(spec.path))
    floating = _stored_dtype(folder) if dtype is None else _name(dtype)
    width = embedding_width(folder)
    if width is None:
        reason = "its modules do not say how wide an embedding is"
        raise cannot_trace(spec.name, reason)
    return _meta((counts[0], width), floating), floating, ()


def embedding_width(folder: Path) -> int | None:
    """Return the width of a sentence-transformers embedding, from its config files.

    The last module that changes it tells: a dense layer its output features, a pooling
    its word embeddings times the ways it pools, a static embedding the columns of its
    weights. None where a module of another kind is in between.
    """
    width: int | None = None
    for module in _modules(folder):
        kind, path = module["type"].rsplit(".", 1)[-1], folder / module.get("path", "")
        config = _json(path / "config.json")
        if kind == "Pooling":
            width = _pooled_width(config)
        elif kind == "Dense":
            output = config.get("module_output_name") or "sentence_embedding"
            width = (
                config.get("out_features") if output == "sentence_embedding" else None
            )
        elif kind == "StaticEmbedding":
            width = _static_width(path / "model.safetensors")
        elif kind not in _KEEP:
            return None
    return width


def _modules(folder: Path) -> list[dict[str, str]]:
    modules: list[dict[str, str]] = json.loads((folder / "modules.json").read_text())
    return modules


def _pooled_width(config: Mapping[str, Any]) -> int | None:
    word = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [
            key for key in config if key.startswith("pooling_mode_") and config[key]
        ]
    ways = 1 if isinstance(modes, str) else len(modes) or 1
    return None if word is None else int(word) * ways


def _static_width(weights: Path) -> int | None:
    """Return the columns of the first matrix that a safetensors header lists."""
    if not weights.is_file():
        return None
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    shapes = (entry["shape"] for key, entry in header.items() if key != "__metadata__")
    return next((int(shape[1]) for shape in shapes if len(shape) == 2), None)


def _name(dtype: str) -> str:
    """Return the floating dtype of the outputs of a model that runs in `dtype`."""
    return str(parse_dtype(dtype)).removeprefix("torch.")


def _stored_dtype(folder: Path) -> str:
    """Return the dtype that the transformer was stored in."""
    for module in _modules(folder):
        config = _json(folder / module.get("path", "") / "config.json")
        name = config.get("dtype", config.get("torch_dtype"))
        if isinstance(getattr(torch, str(name), None), torch.dtype):
            return str(name)
    return "float32"


def _json(path: Path) -> dict[str, Any]:
    """Return a file's mapping; an empty one where there is no such file."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def _meta(shape: Sequence[int], dtype: str) -> Any:
    """Return a tensor without data; texts have no tensor, so an array stands in."""
    if dtype == "string":
        return np.empty(tuple(shape), dtype=np.str_)
    return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device="meta")


class _Graph:
    """One ONNX file: its inputs, its outputs, and the sizes that it names."""

    def __init__(self, spec: ModelSpec, counts: tuple[int, int]) -> None:
        self.spec = spec
        self.rows, self.tokens = counts
        #: Sizes by the names that the file gives them.
        self.bound: dict[str, int] = {}

    def declared(self, examples: Mapping[int | str, Example]) -> Declared:
        """Check the inputs and return the outputs."""
        session = self._session()
        inputs = self._matched(session.get_inputs(), examples)
        for key, node in inputs.items():
            self._bind(key, node, examples[key])
        nodes = session.get_outputs()
        sizes = {size for node in nodes for size in node.shape if isinstance(size, str)}
        if sizes - set(self.bound):
            nodes = self._session().get_outputs()  # it works out "2*tokens"
        dtypes = {key: _dtype(node) for key, node in inputs.items()}
        floats = [dtype for dtype in dtypes.values() if "float" in dtype]
        integers = [
            key for key in dtypes if examples[key].integers and "int" in dtypes[key]
        ]
        floating = floats[0] if floats else "float32"
        return self._outputs(nodes), floating, tuple(integers)

    def _session(self) -> Any:
        """Open the graph as written, the sizes known so far fixed."""
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModelLoadError(
                f"{self.spec.name} needs {error.name}, which this process cannot "
                'import; pip install "dask-infer[onnx]" on the client and the workers'
            ) from error
        options = onnxruntime.SessionOptions()
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        for name, size in self.bound.items():
            options.add_free_dimension_override_by_name(name, size)
        return onnxruntime.InferenceSession(
            str(self.spec.path), options, providers=["CPUExecutionProvider"]
        )

    def _matched(
        self, nodes: Sequence[Any], examples: Mapping[int | str, Example]
    ) -> dict[int | str, Any]:
        """Return the graph's input of each argument, given by place or by name."""
        names = [node.name for node in nodes]
        found: dict[int | str, Any] = {}
        for key in examples:
            if key in names:
                found[key] = nodes[names.index(str(key))]
            elif isinstance(key, int) and key < len(nodes):
                found[key] = nodes[key]
        if len({node.name for node in found.values()}) == len(nodes) == len(examples):
            return found
        given = ", ".join(label(key) for key in examples) or "nothing"
        raise ArityMismatch(
            f'model "{self.spec.name}" takes {len(nodes)} arguments, '
            f"{', '.join(names)}; columns give {given}; {TWO}"
        )

    def _bind(self, key: int | str, node: Any, example: Example) -> None:
        """Check one argument; note what its sizes are called."""
        batch, *row = node.shape or (None,)
        if isinstance(batch, int):
            rows = "row" if batch == 1 else "rows"
            reason = f"it takes exactly {batch} {rows}: export it with a dynamic axis 0"
            raise cannot_trace(self.spec.name, reason)
        shape = tuple(example.shape)
        if not shape and len(row) == 1 and row[0] in (1, None):
            shape = (1,)  # a scalar column becomes (n, 1)
        if len(row) != len(shape) or any(
            isinstance(size, int) and got not in (size, None)
            for size, got in zip(row, shape, strict=True)
        ):
            wanted = ", ".join("?" if s is None else str(s) for s in ("n", *row))
            raise ShapeMismatch(
                f'the model expects ({wanted}) in input "{node.name}" of '
                f'"{self.spec.name}", columns give {example}'
            )
        self._check_dtype(key, node, example)
        sizes = (self.rows, *(self.tokens if size is None else size for size in shape))
        named = zip(node.shape, sizes, strict=True)
        self.bound |= {name: size for name, size in named if isinstance(name, str)}

    def _check_dtype(self, key: int | str, node: Any, example: Example) -> None:
        """Refuse what the loader would not cast: numbers never lose their kind."""
        wanted = _dtype(node)
        given = "float32" if example.dtype == "floating" else example.dtype
        texts = {"string", "text", "object"}
        if given in texts or wanted in texts:
            fits = given in texts and wanted in texts
        elif example.integers:
            fits = wanted != "bool"
        else:
            integers = np.dtype(given).kind == "i" and np.dtype(wanted).kind in "iu"
            fits = integers or np.can_cast(given, wanted, "same_kind")
        if not fits:
            raise ShapeMismatch(
                f'model "{self.spec.name}": input "{node.name}" is {wanted}, '
                f"{label(key)} is {given}; cast the column"
            )

    def _outputs(self, nodes: Sequence[Any]) -> Any:
        """Return arrays by name, or the only one; other sequences are left out."""
        found = {n.name: self._output(n) for n in nodes if n.type.startswith("tensor")}
        if any(_ZIPPED.fullmatch(node.type) for node in nodes):
            widths = zipped_widths(str(self.spec.path))
            for node in nodes:
                if node.name in widths:
                    shape = (self.rows, widths[node.name])
                    found[node.name] = _meta(shape, "float32")
        if not found:
            reason = f'output "{nodes[0].name}" is a {nodes[0].type}'
            raise cannot_trace(self.spec.name, reason)
        return found if len(nodes) > 1 else next(iter(found.values()))

    def _output(self, node: Any) -> Any:
        sizes = [self.bound.get(size, size) for size in node.shape]
        if sizes and not isinstance(sizes[0], int):
            sizes[0] = self.rows
        if not all(isinstance(size, int) for size in sizes):
            shown = ", ".join("?" if size is None else str(size) for size in node.shape)
            reason = f'output "{node.name}" leaves sizes open: ({shown})'
            raise cannot_trace(self.spec.name, reason)
        return _meta(sizes, _dtype(node))


def _dtype(node: Any) -> str:
    """Return the dtype of an input or output: ``tensor(int64)`` is ``int64``."""
    kind = str(node.type)
    return _TYPES.get(kind, kind.removeprefix("tensor(").removesuffix(")"))
