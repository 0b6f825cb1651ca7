"""Why the outputs of a model cannot be found without data, in the user's words.

A wrong refusal is worse than a question: only what torch's own checks say about sizes
and dtypes is called a mismatch; everything else asks for ``meta=``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from dask_infer.errors import InferError, InputError
from dask_infer.spec import ArgumentKey

ASK = (
    'say what it returns with meta=, as in meta="float32" or meta={"score": "float32"}'
)


class CannotTrace(InferError, ValueError):
    """What the model returns cannot be found without data; ``meta=`` declares it."""

    #: The cause alone, for a message that names the model and the remedy itself.
    reason: str | None = None


class ShapeMismatch(CannotTrace, InputError):
    """The model refuses the sizes or dtypes that the columns give."""


class ArityMismatch(CannotTrace, InputError):
    """The model takes other arguments than the columns and `call_kwargs` give."""


@dataclass(frozen=True)
class Example:
    """One argument of the model, one row of it."""

    #: torch dtype name ("float32", "int64", ...), or "floating": the model's own.
    dtype: str
    #: Shape of one row; a leading None is the padded (token) axis.
    shape: tuple[int | None, ...] = ()
    #: What it goes in as where the model refuses `dtype`: "int64" of stacked columns
    #: that are all integers, "floating" of lists of integers.
    other: str | None = None
    #: A tokenizer's output: left out where the model takes no such argument.
    optional: bool = False
    #: Lists of integers that are padded for a model that names an attention mask.
    ids: bool = False
    #: Objects, of which only the worker sees whether they are integers.
    unknown: bool = False

    def __str__(self) -> str:
        sizes = ["n", *("tokens" if size is None else str(size) for size in self.shape)]
        return f"({', '.join(sizes)}{',' * (len(sizes) == 1)}) {self.dtype}"


@dataclass(frozen=True)
class Attempt:
    """One call on fake tensors: what a refusal names."""

    name: str
    examples: Mapping[ArgumentKey, Example]
    rows: int

    def describe(self) -> str:
        """Return the arguments in words."""
        return ", ".join(f"{label(key)} is {ex}" for key, ex in self.examples.items())

    def refusal(self, error: Exception, module: torch.nn.Module) -> CannotTrace:
        """Return the error for the user, of one that `module` raised."""
        message = str(error)
        if isinstance(error, InferError):
            return cannot_trace(self.name, message)
        if _ARITY.search(message):
            return ArityMismatch(f'model "{self.name}": {_first(message)}; {TWO}')
        if isinstance(error, MixedDtypes) or _DTYPES.search(message):
            return ShapeMismatch(self._dtypes(message))
        if self._is_mismatch(message):
            return ShapeMismatch(self._sizes(error, module))
        return cannot_trace(self.name, _reason(error))

    def _is_mismatch(self, message: str) -> bool:
        # A tokenizer may pad to the one length that the model takes, and a model may
        # be written for one number of rows: neither shows in one row of the columns.
        if any(None in example.shape for example in self.examples.values()):
            return False
        if _BROADCAST.search(message):
            return f"({self.rows})" not in message
        if found := _BROADCAST_TO.search(message):
            target = [int(size) for size in found[3].split(",")]
            return self.rows not in (int(found[1]), target[int(found[2])])
        return _SIZES.search(message) is not None

    def _dtypes(self, message: str) -> str:
        wanted = "int64" if _INDICES.search(message) else "float32"
        return (
            f'model "{self.name}" refuses the dtype of an input: {_first(message)}; '
            f"{self.describe()}; cast the column, as in "
            f'df.astype({{"x": "{wanted}"}})'
        )

    def _sizes(self, error: Exception, module: torch.nn.Module) -> str:
        found = _layer(error.__traceback__, module)
        if found is None:
            reason = _first(str(error)).replace(f"[{self.rows},", "[n,")
            return f'model "{self.name}" refuses its input: {reason}; {self.describe()}'
        layer, expected, got, noun = found
        if got == self.rows and any(ex.shape == () for ex in self.examples.values()):
            advice = f"pass a list of {expected} columns"
            if expected == 1:
                advice = 'pass columns=["x"] for (n, 1)'
            return (
                f"the model expects {expected} {noun} a row, and a single column gives "
                f'(n,), in {layer} of "{self.name}"; {advice}'
            )
        given = any(ex.shape and ex.shape[-1] == got for ex in self.examples.values())
        gives = "columns give" if given else "gets"
        return (
            f"the model expects {expected} {noun}, {gives} {got}, "
            f'in {layer} of "{self.name}"; {self.describe()}'
        )


class MixedDtypes(RuntimeError):
    """Dtypes that fake kernels take together and real ones do not."""


TWO = '["a", "b"] is one argument, ("a", "b") are two'

_ARITY = re.compile(
    r"forward\(\) (expected at most \d+ argument|is missing value for argument)"
    r"|Unknown keyword argument .* for operator 'forward'"
    r"|exported input tree spec|kwarg keyword mismatch"
)
_DTYPES = re.compile(
    r"scalar type|same dtype|match weight dtype|type \(.*\) should be the same"
    r"|indices to be long or int|used as indices must be|applicable to index tensor"
    r"|only Tensors of floating point|not implemented for '(Long|Int|Bool|Char|Short)'"
)
_INDICES = re.compile(r"indices|index tensor")
_BROADCAST = re.compile(r"must match the size of tensor|Sizes of tensors must match")
_BROADCAST_TO = re.compile(
    r"broadcast a dimension of length (\d+) at (-\d+)!.*broadcastable to \[([\d, ]+)\]"
)
_SIZES = re.compile(
    r"shapes cannot be multiplied|same reduction dim|expected input\[|must be equal to"
    r" input_size|expected input with shape|running_mean should contain|Expected \dD"
    r"|expected \dD|expecting embedding dimension|doesn't match model|channel dimension"
    r"|size mismatch|shape\[\d+\] to be equal to|to have \d+ channels"
    r"|Expected size for first two dimensions"
)


def cannot_trace(name: str, reason: str) -> CannotTrace:
    """Return the refusal that asks for ``meta=``."""
    error = CannotTrace(f'model "{name}": {reason}; {ASK}')
    error.reason = reason
    return error


def label(key: ArgumentKey) -> str:
    """Return what an argument is called: its place or its keyword."""
    return f"argument {key + 1}" if isinstance(key, int) else f'argument "{key}"'


def _first(message: str) -> str:
    """Return the first line of a message, cut where it is long."""
    lines = [line for line in message.strip().splitlines() if line.strip()]
    return lines[0].strip()[:300].rstrip(".") if lines else ""


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    message = _first(str(error)).replace("'FakeTensor'", "'Tensor'")
    if kind in ("DataDependentOutputException", "DynamicOutputShapeException"):
        return (
            "what it returns depends on the values it is given "
            f"({message}: as .item(), bool(tensor) and boolean masks do)"
        )
    if ".numpy()" in message or "__array__" in message:
        return "it leaves torch for NumPy, which cannot be followed without data"
    return f"it cannot be called without data ({kind}: {message})"


#: Attribute with the expected size, axis it is found at, what it counts.
_EXPECTS = (
    ("in_features", -1, "features"),
    ("in_channels", 1, "channels"),
    ("input_size", -1, "features"),
    ("num_features", 1, "features"),
    ("normalized_shape", -1, "features"),
)


def _layer(
    trace: TracebackType | None, module: torch.nn.Module
) -> tuple[str, int, int, str] | None:
    """Return the innermost layer that failed: its name, expected, got, and the noun."""
    layer: Any = None
    tensor: Any = None
    while trace is not None:
        local = trace.tb_frame.f_locals
        if isinstance(local.get("self"), torch.nn.Module):
            layer, tensor = local["self"], local.get("input")
        trace = trace.tb_next
    for attribute, axis, noun in _EXPECTS:
        expected = getattr(layer, attribute, None)
        expected = expected[-1] if isinstance(expected, tuple) else expected
        if isinstance(expected, int) and isinstance(tensor, torch.Tensor):
            if tensor.dim() <= max(axis, 0) or tensor.shape[axis] == expected:
                return None
            paths = {id(part): path for path, part in module.named_modules()}
            path, kind = paths.get(id(layer)), type(layer).__name__
            named = f'layer "{path}" ({kind})' if path else kind
            return named, expected, int(tensor.shape[axis]), noun
    return None
