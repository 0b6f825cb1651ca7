"""What a model would return, found without its weights, without data, on the client.

The model's code runs on fake tensors: they have a shape and a dtype and no numbers. The
counts of rows and tokens are primes that are no other size of the model, and there are
two of each: whoever reads the result knows these axes by their size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from dask_infer.model.formats.format import FileCall
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import floating_dtype, is_lazy, parse_dtype
from dask_infer.model.runtime.methods import check_method, signature_of
from dask_infer.model.shapes.call_arguments import by_key, taken, without_cache
from dask_infer.model.shapes.fake_model import weightless
from dask_infer.model.shapes.padding import generates, token_rules
from dask_infer.model.shapes.sandbox import sandbox
from dask_infer.model.shapes.strict_dtypes import StrictDtypes
from dask_infer.model.shapes.trace_errors import (
    ArityMismatch,
    Attempt,
    CannotTrace,
    Example,
    ShapeMismatch,
    cannot_trace,
    label,
)
from dask_infer.model.shapes.traced_outputs import (
    Traced,
    compared,
    counts_beside,
    leaves_of,
)
from dask_infer.spec import ArgumentKey, ModelSpec

__all__ = [
    "ArityMismatch",
    "CannotTrace",
    "Example",
    "ShapeMismatch",
    "Traced",
    "check_call",
    "propagate",
]


#: Up to so many stacked lists are tried as integers in every combination, else all.
_COMBINED = 4


def propagate(
    spec: ModelSpec,
    live: object | None,
    args: Sequence[Example],
    kwargs: Mapping[str, Example],
    *,
    method: str | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    dtype: str | None = None,
) -> Traced:
    """Find what the model returns for a batch, without weights, data or a real call.

    Parameters
    ----------
    spec
        The model.
    live
        The caller's module, which is left untouched; for a factory what builds it when
        called. None to read the spec's own.
    args, kwargs
        One row of each argument.
    method
        Called in place of the model itself.
    call_kwargs
        Extra keyword arguments of the call.
    dtype
        Floating dtype that the model runs in; None as it is.

    Raises
    ------
    ShapeMismatch
        The model refuses these sizes or dtypes.
    ArityMismatch
        It takes other arguments.
    MissingMethodError
        It has no such method.
    CannotTrace
        It depends on values, leaves torch, or is opaque: ``meta=`` is needed.
    """
    examples = by_key(args, kwargs)
    with sandbox():
        if format_of(spec).declares_outputs:
            return _declared(spec, examples, method, dtype)
        module = _traceable_module(spec, live)
        call = _Call(
            spec.name, module, method, examples, dict(call_kwargs or {}), dtype
        )
        return call.generated() or call.checked().traced()


def check_call(
    spec: ModelSpec,
    live: object | None,
    args: Sequence[Example],
    kwargs: Mapping[str, Example],
    *,
    method: str | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Refuse a method that a module lacks and arguments that it does not take.

    Nothing of it runs. Parameters and errors are those of `propagate`.
    """
    if not isinstance(live, torch.nn.Module):
        return
    examples = by_key(args, kwargs)
    module = _traceable_module(spec, live)
    _Call(spec.name, module, method, examples, dict(call_kwargs or {}), None).checked()


def _declared(
    spec: ModelSpec,
    examples: dict[ArgumentKey, Example],
    method: str | None,
    dtype: str | None,
) -> Traced:
    """Return what the model's files declare, for two counts of rows and of tokens."""
    both = []
    for counts in counts_beside():
        call = FileCall(examples, counts, method, dtype)
        output, floating, integers = format_of(spec).declared_outputs(spec, call)
        both.append(Traced(output, *counts, floating, integers))
    return compared(*both)


def _traceable_module(spec: ModelSpec, live: object | None) -> torch.nn.Module:
    """Return the model with no weights loaded, as far as its format allows."""
    module = format_of(spec).traceable_module(spec, live)
    tensors = chain(module.parameters(), module.buffers())
    if any(is_lazy(tensor) for tensor in tensors):
        reason = "lazy layers have no sizes yet: call it once on an example row"
        raise cannot_trace(spec.name, reason)
    return module


@dataclass(frozen=True)
class _Call:
    """One model and how it is called."""

    name: str
    module: torch.nn.Module
    method: str | None
    examples: dict[ArgumentKey, Example]
    extra: dict[str, Any]
    dtype: str | None
    dropped: tuple[str, ...] = ()

    @property
    def floating(self) -> torch.dtype:
        own = parse_dtype(self.dtype) or floating_dtype(self.module)
        return own or torch.get_default_dtype()

    def checked(self) -> _Call:
        """Check method and arguments; return the call that can be tried."""
        if self.method is not None:
            check_method(self.module, self.method, self.name)
            if self.method == "generate":
                reason = "generate chooses each token by the one before"
                raise cannot_trace(self.name, reason)
        function = self.method or "forward"
        signature = signature_of(getattr(self.module, function))
        if signature is None:
            return self
        examples = taken(self.name, function, signature, self.examples, self.extra)
        dropped = tuple(str(key) for key in self.examples if key not in examples)
        extra = without_cache(self.module, signature, self.extra)
        return replace(self, examples=examples, extra=extra, dropped=dropped)

    def generated(self) -> Traced | None:
        """Return what ``generate`` of transformers returns; None for other calls."""
        if self.method != "generate" or not generates(self.module, self.extra):
            return None
        (rows, tokens), _ = counts_beside()
        sequences = torch.empty(rows, tokens, dtype=torch.int64, device="meta")
        return Traced(sequences, rows, tokens, _name(self.floating), ragged=True)

    def traced(self) -> Traced:
        """Try lists of integers as such; where the model refuses them, floating."""
        listed = {k: ex for k, ex in self.examples.items() if ex.floats}
        try:
            return self._tried()
        except CannotTrace as error:
            if not listed:
                raise
            refused = error
        floats = {k: replace(ex, dtype="floating") for k, ex in listed.items()}
        with suppress(CannotTrace):
            again = replace(self, examples=self.examples | floats)._tried()
            return replace(again, as_floats=(*again.as_floats, *listed))
        raise refused

    def _tried(self) -> Traced:
        """Try floating inputs, then int64 for as few stacked lists as it takes."""
        refused: CannotTrace | None = None
        for as_integers in _subsets(self.examples):
            try:
                found = self._twice(as_integers)
            except CannotTrace as error:
                refused = refused or error
                continue
            return replace(found, as_floats=self._only_floats(found))
        assert refused is not None
        raise refused

    def _twice(self, as_integers: tuple[ArgumentKey, ...]) -> Traced:
        """Trace with two counts of rows and tokens: they show which axis is which."""
        counts = counts_beside(self._sizes())
        function = getattr(self.module, self.method or "forward")
        if token_rules(self.module, function, None).alone:
            counts = tuple((1, tokens) for _, tokens in counts)
        found = self._traced_with(as_integers, *counts[0])
        with suppress(CannotTrace):
            return compared(found, self._traced_with(as_integers, *counts[1]))
        return found

    def _traced_with(
        self, as_integers: tuple[ArgumentKey, ...], rows: int, tokens: int
    ) -> Traced:
        output = self._attempt(as_integers, rows, tokens)
        floating = _name(self.floating)
        return Traced(output, rows, tokens, floating, as_integers, self.dropped)

    def _only_floats(self, found: Traced) -> tuple[ArgumentKey, ...]:
        """Return the objects that the model must not be given as integers.

        It refuses them, or they would change the dtype of its output. Lists of unknown
        length may be padded as they are: such an output is refused.
        """
        unknown = tuple(key for key, ex in self.examples.items() if ex.unknown)
        as_integers = found.as_integers
        if not unknown or set(unknown) <= set(as_integers):
            return ()
        floats = tuple(key for key in unknown if key not in as_integers)
        try:
            other = self._attempt((*as_integers, *unknown), found.rows, found.tokens)
        except CannotTrace:
            return floats
        both = (found.output, other)
        dtypes = [[leaf.dtype for leaf in leaves_of(each)] for each in both]
        if dtypes[0] == dtypes[1]:
            return ()
        if all(None not in self.examples[key].shape for key in floats):
            return floats
        reason = "whether its input holds integers is known only once it is read"
        raise cannot_trace(self.name, reason)

    def _sizes(self) -> set[int]:
        """Return every size that the model's tensors and its inputs have."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        own = chain.from_iterable(tensor.shape for tensor in tensors)
        given = chain.from_iterable(example.shape for example in self.examples.values())
        return {int(size) for size in chain(own, given) if size is not None}

    def _attempt(
        self, as_integers: tuple[ArgumentKey, ...], rows: int, tokens: int
    ) -> Any:
        floating = self.floating
        weights = floating if self.dtype is not None else None
        try:
            return self._run(as_integers, (rows, tokens), weights, floating)
        except CannotTrace as error:
            # Fakes of some kernels (grouped products of experts) know bfloat16 only.
            half = torch.bfloat16
            if "BF16" not in str(error.__cause__) or floating is half:
                raise
            output = self._run(as_integers, (rows, tokens), half, half)
        return pytree.tree_map_only(
            torch.Tensor, lambda x: x.to(floating) if x.dtype is half else x, output
        )

    def _run(
        self,
        as_integers: tuple[ArgumentKey, ...],
        counts: tuple[int, int],
        weights: torch.dtype | None,
        floating: torch.dtype,
    ) -> Any:
        """Call a weightless copy on fake tensors; refuse in the user's words."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        module = self._copy(mode, weights)
        function = getattr(module, self.method or "__call__")
        strict = StrictDtypes()
        with torch.no_grad(), mode, strict:
            tensors = {
                key: self._tensor(key, floating, key in as_integers, counts)
                for key in self.examples
            }
            own = chain(module.parameters(), module.buffers())
            device = next((tensor.device for tensor in own), None)
            args, kwargs = _split({key: t.to(device) for key, t in tensors.items()})
            try:
                return function(*args, **kwargs, **self.extra)
            except Exception as error:
                cause = strict.original(error)
                raise self._attempted(tensors, counts).refusal(cause, module) from cause

    def _copy(
        self, mode: FakeTensorMode, weights: torch.dtype | None
    ) -> torch.nn.Module:
        try:
            return weightless(self.module, mode, weights)
        except Exception as error:
            reason = f"it cannot be copied ({type(error).__name__}: {error})"
            raise cannot_trace(self.name, reason) from error

    def _tensor(
        self,
        key: ArgumentKey,
        floating: torch.dtype,
        integers: bool,
        counts: tuple[int, int],
    ) -> torch.Tensor:
        example, (rows, tokens) = self.examples[key], counts
        known = {"floating": floating, **vars(torch)}
        dtype = torch.int64 if integers else known.get(example.dtype)
        if not isinstance(dtype, torch.dtype):
            reason = f"{label(key)} holds {example.dtype}, of which no tensor is made"
            raise cannot_trace(self.name, reason)
        shape = [tokens if size is None else size for size in example.shape]
        return torch.empty(rows, *shape, dtype=dtype)

    def _attempted(
        self, tensors: Mapping[ArgumentKey, torch.Tensor], counts: tuple[int, int]
    ) -> Attempt:
        shown = {
            key: Example(_name(tensor.dtype), self.examples[key].shape)
            for key, tensor in tensors.items()
        }
        return Attempt(self.name, shown, *counts)


def _subsets(
    examples: Mapping[ArgumentKey, Example],
) -> Iterator[tuple[ArgumentKey, ...]]:
    able = [key for key, example in examples.items() if example.integers]
    sizes = range(len(able) + 1) if len(able) <= _COMBINED else (0, len(able))
    return chain.from_iterable(combinations(able, size) for size in sizes)


def _split(
    tensors: Mapping[ArgumentKey, torch.Tensor],
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    args = [tensor for key, tensor in tensors.items() if isinstance(key, int)]
    return args, {key: t for key, t in tensors.items() if isinstance(key, str)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
