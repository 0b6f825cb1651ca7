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

from dask_infer.batch.inputs.decided_dtypes import with_lists
from dask_infer.model.formats.format import FileCall
from dask_infer.model.identity.content_key import content_key
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import floating_dtype, parse_dtype
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.methods import check_method, signature_of
from dask_infer.model.shapes.call_arguments import by_key, taken, without_cache
from dask_infer.model.shapes.fake_model import weightless
from dask_infer.model.shapes.padding import generates, token_rules
from dask_infer.model.shapes.sandbox import sandbox
from dask_infer.model.shapes.strict_dtypes import StrictDtypes
from dask_infer.model.shapes.trace_errors import (
    Attempt,
    CannotTrace,
    Example,
    cannot_trace,
    label,
)
from dask_infer.model.shapes.traced_outputs import (
    Traced,
    compared,
    counts_beside,
    leaves_of,
)
from dask_infer.spec import ArgumentKey, Inputs, ModelSpec, Undecided

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
        format = format_of(spec)
        if format.declares_outputs:
            calls = (FileCall(examples, two, method, dtype) for two in counts_beside())
            return compared(*(format.declared_outputs(spec, call) for call in calls))
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


def decided(
    inputs: Inputs,
    undecided: Undecided,
    model: LoadedModel,
    method: str | None,
    call_kwargs: Mapping[str, Any],
) -> Inputs:
    """Return `inputs` with those as int64 that the model refuses as floats.

    With ``meta=`` the client does not run a module's code. The worker does, on shapes
    alone and once for each kind of call of a replica, before the first batch.
    """
    key = content_key((method, dict(call_kwargs), undecided))
    if key not in model.decided:
        args, kwargs = undecided.args, undecided.kwargs
        options: dict[str, Any] = {"method": method, "call_kwargs": call_kwargs}
        dtypes: dict[int, str] = {}
        with suppress(CannotTrace):
            traced = propagate(model.spec, model.target, args, kwargs, **options)
            dtypes = traced.dtypes_at(undecided.places)
        model.decided[key] = dtypes  # complete: other threads look
    return with_lists(inputs, model.decided[key])


def _traceable_module(spec: ModelSpec, live: object | None) -> torch.nn.Module:
    """Return the model with no weights loaded, as far as its format allows."""
    module = format_of(spec).traceable_module(spec, live)
    tensors = chain(module.parameters(), module.buffers())
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in tensors):
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
        """Try arguments as they are, then as few as it takes in their other dtype."""
        refused: CannotTrace | None = None
        for changed in _choices(self.examples):
            dtypes = {key: str(self.examples[key].other) for key in changed}
            try:
                found = self._with(dtypes)._twice()
            except CannotTrace as error:
                refused = refused or error
                continue
            return replace(found, dtypes=dtypes | self._only_floats(found, dtypes))
        assert refused is not None
        raise refused

    def _with(self, dtypes: Mapping[ArgumentKey, str]) -> _Call:
        changed = {k: replace(self.examples[k], dtype=d) for k, d in dtypes.items()}
        return replace(self, examples={**self.examples, **changed})

    def _twice(self) -> Traced:
        """Trace with two counts of rows and tokens: they show which axis is which."""
        counts = counts_beside(self._sizes())
        function = getattr(self.module, self.method or "forward")
        if token_rules(self.module, function, None).alone:
            counts = tuple((1, tokens) for _, tokens in counts)
        found = self._traced_with(*counts[0])
        with suppress(CannotTrace):
            return compared(found, self._traced_with(*counts[1]))
        return found

    def _traced_with(self, rows: int, tokens: int) -> Traced:
        floating = _name(self.floating)
        output = self._attempt(rows, tokens)
        return Traced(output, rows, tokens, floating, dropped=self.dropped)

    def _only_floats(
        self, found: Traced, dtypes: Mapping[ArgumentKey, str]
    ) -> dict[ArgumentKey, str]:
        """Return the objects that the model must not be given as integers.

        It refuses them, or they would change the dtype of its output. Lists of unknown
        length may be padded as they are: such an output is refused.
        """
        unknown = [key for key, ex in self.examples.items() if ex.unknown]
        floats = dict.fromkeys((k for k in unknown if k not in dtypes), "floating")
        if not floats:
            return {}
        integers = {**dtypes, **dict.fromkeys(unknown, "int64")}
        try:
            other = self._with(integers)._attempt(found.rows, found.tokens)
        except CannotTrace:
            return floats
        both = (found.output, other)
        plain = [[leaf.dtype for leaf in leaves_of(each)] for each in both]
        if plain[0] == plain[1]:
            return {}
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

    def _attempt(self, rows: int, tokens: int) -> Any:
        """Return the output for so many rows and tokens."""
        floating = self.floating
        weights = floating if self.dtype is not None else None
        try:
            return self._run(rows, tokens, weights, floating)
        except CannotTrace as error:
            # Fakes of some kernels (grouped products of experts) know bfloat16 only.
            half = torch.bfloat16
            if "BF16" not in str(error.__cause__) or floating is half:
                raise
            output = self._run(rows, tokens, half, half)
        return pytree.tree_map_only(
            torch.Tensor, lambda x: x.to(floating) if x.dtype is half else x, output
        )

    def _run(
        self,
        rows: int,
        tokens: int,
        weights: torch.dtype | None,
        floating: torch.dtype,
    ) -> Any:
        """Call a weightless copy on fake tensors; refuse in the user's words."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        try:
            module = weightless(self.module, mode, weights)
        except Exception as error:
            reason = f"it cannot be copied ({type(error).__name__}: {error})"
            raise cannot_trace(self.name, reason) from error
        function = getattr(module, self.method or "__call__")
        strict = StrictDtypes()
        with torch.no_grad(), mode, strict:
            own = chain(module.parameters(), module.buffers())
            device = next((tensor.device for tensor in own), None)
            given = {}
            for key, example in self.examples.items():
                shape = [tokens if size is None else size for size in example.shape]
                dtype = self._dtype(key, floating)
                given[key] = torch.empty(rows, *shape, dtype=dtype).to(device)
            args = [tensor for key, tensor in given.items() if isinstance(key, int)]
            kwargs = {key: t for key, t in given.items() if isinstance(key, str)}
            try:
                return function(*args, **kwargs, **self.extra)
            except Exception as error:
                cause = strict.original(error)
                shown = {
                    key: Example(_name(tensor.dtype), self.examples[key].shape)
                    for key, tensor in given.items()
                }
                attempt = Attempt(self.name, shown, rows)
                raise attempt.refusal(cause, module) from cause

    def _dtype(self, key: ArgumentKey, floating: torch.dtype) -> torch.dtype:
        name = self.examples[key].dtype
        dtype = floating if name == "floating" else getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            reason = f"{label(key)} holds {name}, of which no tensor is made"
            raise cannot_trace(self.name, reason)
        return dtype


def _choices(
    examples: Mapping[ArgumentKey, Example],
) -> Iterator[tuple[ArgumentKey, ...]]:
    """Yield the arguments that change their dtype: few stacks, then all lists too."""
    stacked = [key for key, example in examples.items() if example.other == "int64"]
    listed = [key for key, example in examples.items() if example.other == "floating"]
    every = len(stacked) <= _COMBINED
    sizes = range(len(stacked) + 1) if every else (0, len(stacked))
    choices = [chosen for size in sizes for chosen in combinations(stacked, size)]
    yield from choices
    if listed:
        yield from ((*listed, *chosen) for chosen in choices)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
