"""Files that hold a graph of named inputs and outputs, run on NumPy arrays.

What ONNX and TensorFlow Lite have in common: columns are matched with the graph's
inputs by place or by name, sizes are checked before anything runs, and numbers are cast
to the input's own type where no more than digits are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dask_infer.batch.tensor.integer_ranges import misfits
from dask_infer.errors import InputError
from dask_infer.model.formats.format import FileCall
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.methods import MissingMethodError
from dask_infer.model.shapes.trace_errors import (
    TWO,
    ArityMismatch,
    ShapeMismatch,
    cannot_trace,
    label,
)
from dask_infer.model.shapes.traced_outputs import Traced
from dask_infer.spec import ArgumentKey
from dask_infer.spec.model_spec import ModelSpec

_TEXTS = ("string", "text", "object")


@dataclass(frozen=True)
class ArrayInfo:
    """One input or output of a graph."""

    name: str
    #: As NumPy calls it, or "string".
    dtype: str
    #: A size, the name that the file gives it, or None where it is open.
    shape: tuple[int | str | None, ...]

    @property
    def numpy(self) -> np.dtype[Any]:
        """The dtype of its arrays; texts and what NumPy lacks are objects."""
        try:
            return np.dtype("object" if self.dtype == "string" else self.dtype)
        except TypeError:
            return np.dtype("object")


class GraphCall:
    """The arguments of one call, matched with the inputs of a graph.

    Parameters
    ----------
    name
        What errors call the model.
    inputs
        All inputs of the graph, in order.
    call
        Its arguments; rows and tokens are counted.
    remedy
        What to do where the graph takes one number of rows only.

    Raises
    ------
    ArityMismatch, ShapeMismatch
        The arguments are not those that the graph takes.
    CannotTrace
        It takes one number of rows only.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[ArrayInfo],
        call: FileCall,
        remedy: str,
    ) -> None:
        self.name, self.remedy = name, remedy
        self.examples, self.counts = call.examples, call.counts
        #: The input of each argument.
        self.inputs = self._match(inputs)
        #: Size of every axis, by the input's name.
        self.sizes = {
            info.name: self._sizes(key, info) for key, info in self.inputs.items()
        }

    def traced(self, outputs: Any) -> Traced:
        """Return the outputs, and in which dtypes columns go in."""
        dtypes = (info.dtype for info in self.inputs.values())
        floating = next((dtype for dtype in dtypes if "float" in dtype), "float32")
        integers = {
            key: "int64"
            for key, info in self.inputs.items()
            if self.examples[key].other == "int64" and "int" in info.dtype
        }
        return Traced(outputs, *self.counts, floating, integers)

    def _match(self, inputs: Sequence[ArrayInfo]) -> dict[ArgumentKey, ArrayInfo]:
        """Return the graph's input of each argument, given by place or by name."""
        named = {info.name: info for info in inputs}
        found: dict[ArgumentKey, ArrayInfo] = {}
        for key in self.examples:
            if key in named:
                found[key] = named[str(key)]
            elif isinstance(key, int) and key < len(inputs):
                found[key] = inputs[key]
        distinct = {info.name for info in found.values()}
        if len(distinct) == len(inputs) == len(self.examples):
            return found
        given = ", ".join(label(key) for key in self.examples) or "nothing"
        raise ArityMismatch(
            f'model "{self.name}" takes {len(inputs)} arguments, '
            f"{', '.join(named)}; columns give {given}; {TWO}"
        )

    def _sizes(self, key: ArgumentKey, info: ArrayInfo) -> tuple[int, ...]:
        """Check one argument; return the shape of its batch."""
        example, (batch, *row) = self.examples[key], info.shape or (None,)
        if isinstance(batch, int):
            rows = "row" if batch == 1 else "rows"
            reason = f"it takes exactly {batch} {rows}: {self.remedy}"
            raise cannot_trace(self.name, reason)
        shape = tuple(example.shape)
        if not shape and len(row) == 1 and row[0] in (1, None):
            shape = (1,)  # a scalar column becomes (n, 1)
        if len(row) != len(shape) or any(
            isinstance(size, int) and given not in (size, None)
            for size, given in zip(row, shape, strict=True)
        ):
            wanted = ", ".join("?" if s is None else str(s) for s in ("n", *row))
            raise ShapeMismatch(
                f'the model expects ({wanted}) in input "{info.name}" of '
                f'"{self.name}", columns give {example}'
            )
        self._check_dtype(key, info)
        count, tokens = self.counts
        return (count, *(tokens if size is None else size for size in shape))

    def _check_dtype(self, key: ArgumentKey, info: ArrayInfo) -> None:
        """Refuse what `GraphModel` would not cast: numbers never change their kind."""
        example, wanted = self.examples[key], info.dtype
        given = "float32" if example.dtype == "floating" else example.dtype
        if given in _TEXTS or wanted in _TEXTS:
            fits = given in _TEXTS and wanted in _TEXTS
        elif example.other == "int64":
            fits = wanted != "bool"
        else:
            fits = _is_castable(np.dtype(given), info.numpy)
        if not fits:
            raise ShapeMismatch(
                f'model "{self.name}": input "{info.name}" is {wanted}, '
                f"{label(key)} is {given}; cast the column"
            )


def only_or_all(outputs: dict[str, Any]) -> Any:
    """Return the only output, or all of them by name."""
    return outputs if len(outputs) != 1 else next(iter(outputs.values()))


def output_on_meta(name: str, info: ArrayInfo, sizes: Sequence[Any], rows: int) -> Any:
    """Return an output without data; the first axis counts rows unless it is fixed.

    Raises
    ------
    CannotTrace
        Another axis has no size.
    """
    sizes = list(sizes)
    if sizes and not isinstance(sizes[0], int):
        sizes[0] = rows
    if not all(isinstance(size, int) for size in sizes):
        shown = ", ".join("?" if size is None else str(size) for size in info.shape)
        reason = f'output "{info.name}" leaves sizes open: ({shown})'
        raise cannot_trace(name, reason)
    if info.dtype == "string":  # texts have no tensor
        return np.empty(tuple(sizes), dtype=np.str_)
    return torch.empty(*sizes, dtype=getattr(torch, info.dtype), device="meta")


class GraphModel(LoadedModel):
    """A graph in its runtime; arrays in by position or name, arrays out by name.

    Parameters
    ----------
    what
        What the graph is, as errors call it: "ONNX model".
    """

    def __init__(
        self, spec: ModelSpec, session: Any, inputs: Sequence[ArrayInfo], what: str
    ) -> None:
        super().__init__(spec, "numpy", session, spec.nbytes)
        self.what = what
        self.inputs = {info.name: info for info in inputs}
        self.accepts = frozenset(self.inputs)
        self.dtypes = tuple((info.name, info.numpy.name) for info in inputs)

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return all outputs by name, for all inputs by name; from any thread."""
        raise NotImplementedError

    def function(self, method: str | None) -> Callable[..., Any]:
        """Return the graph as a function."""
        if method is not None:
            raise no_method(self.spec, self.what, method)
        return self._call

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        return only_or_all(self.run(self._feed(args, kwargs)))

    def _feed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        names = ", ".join(self.inputs)
        if len(args) > len(self.inputs):
            raise InputError(
                f"{self.spec.name} reads {len(self.inputs)} inputs ({names}), not "
                f"{len(args)}; pass columns= with as many"
            )
        given = {**dict(zip(self.inputs, args, strict=False)), **kwargs}
        unknown = sorted(given.keys() - self.inputs.keys())
        if wrong := unknown or sorted(self.inputs.keys() - given.keys()):
            cause = "has no" if unknown else "got nothing for"
            raise InputError(
                f"{self.spec.name} {cause} input {wrong[0]!r}; its inputs are {names}: "
                "pass columns={input: column}"
            )
        return {name: self._fit(self.inputs[name], v) for name, v in given.items()}

    def _fit(self, info: ArrayInfo, value: Any) -> np.ndarray:
        """Cast to the input's own type and shape where no more than digits are lost."""
        array, wanted = np.asarray(value), info.numpy
        what = f"input {info.name!r} of the {self.what} is {info.dtype}"
        if array.dtype.kind in "UT":
            array = array.astype(object)
        if array.dtype != wanted and (
            wanted.kind == "O" or not _is_castable(array.dtype, wanted)
        ):
            raise InputError(
                f"{what}, but its column holds {array.dtype}; cast the column"
            )
        wrong = misfits(array, wanted)
        if wrong is not None:
            raise InputError(
                f"{what}, which cannot hold {array[wrong][0]!s}; cast the column, or "
                "export the model anew"
            )
        array = np.ascontiguousarray(array.astype(wanted, copy=False))
        is_column = len(info.shape) == 2 and not (
            isinstance(info.shape[1], int) and info.shape[1] != 1
        )
        return array[:, None] if array.ndim == 1 and is_column else array


def _is_castable(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    integers = given.kind in "iu" and wanted.kind in "iu"
    return integers or np.can_cast(given, wanted, "same_kind")


def no_method(spec: ModelSpec, what: str, method: str) -> MissingMethodError:
    """Return the error for a method that was asked of a graph."""
    return MissingMethodError(
        f"{spec.name}: the {what} has no method {method}; leave method= out"
    )
