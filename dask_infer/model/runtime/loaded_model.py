"""A model in this process that can be called with a batch."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch

from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.model.runtime.footprint import floating_dtype, tensor_bytes
from dask_infer.model.runtime.kept_memory import KeptMemory
from dask_infer.model.runtime.methods import check_method, signature_of
from dask_infer.model.shapes.padding import names_mask, token_rules
from dask_infer.plan.units import in_bytes
from dask_infer.spec.model_spec import Interface, ModelSpec
from dask_infer.spec.token_rules import TokenRules

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


class LoadedModel:
    """One resident model; safe to call from several threads at once.

    Parameters
    ----------
    spec
        Where it came from.
    interface
        What it wants to be called with: tensors, NumPy arrays or a pandas frame.
    target
        The live object: a module, an estimator, a function, a session.
    nbytes
        Measured bytes resident.
    """

    spec: ModelSpec
    #: "tensor", "numpy" or "frame".
    interface: Interface
    #: Where batches must be; the CPU unless the interface is "tensor".
    device: torch.device = CPU
    #: The model's floating dtype; None where it has no floating parameter.
    floating: torch.dtype | None = None
    #: Bytes of parameters and buffers, shared ones once.
    nbytes: int
    #: Dtypes of arguments by their places, by the call that was looked at.
    decided: dict[Any, dict[int, str]]
    #: Keyword arguments that a call takes; None where any, or unknown.
    accepts: frozenset[str] | None = None
    #: Names and dtypes of its arguments, in order, where it casts what it is given.
    dtypes: tuple[tuple[str, str], ...] = ()

    def __init__(
        self, spec: ModelSpec, interface: Interface, target: Any, nbytes: int
    ) -> None:
        self.spec, self.interface, self.nbytes = spec, interface, nbytes
        self.target = target
        self.decided = {}
        #: How calls take tokens, by method: each partition asks.
        self._token_rules: dict[str | None, TokenRules] = {}

    def __repr__(self) -> str:
        size = in_bytes(self.nbytes)
        return f"<{type(self).__name__} {self.spec.name} {size} {self.device}>"

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None = None
    ) -> Any:
        """Return what the model, or its `method`, makes of one batch."""
        return self.function(method)(*args, **kwargs)

    def function(self, method: str | None) -> Callable[..., Any]:
        """Return what a call runs."""
        if method is None:
            return self.target  # type: ignore[no-any-return]
        check_method(self.target, method)
        return getattr(self.target, method)  # type: ignore[no-any-return]

    def token_rules(self, method: str | None) -> TokenRules:
        """Return how a call of `method` takes tokens."""
        if method not in self._token_rules:
            self._token_rules[method] = self.find_token_rules(method)
        return self._token_rules[method]

    def find_token_rules(self, method: str | None) -> TokenRules:
        """Read it off the signature of what a call runs."""
        function = self.function(method)
        accepts = self.accepts if method is None else keywords_of(function)
        return TokenRules(accepts, masked=names_mask(function))

    def close(self) -> None:
        """Let go of the model; an accelerator's memory goes back to the device."""
        self.target = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()


class FunctionModel(LoadedModel):
    """A function or a callable object, called with NumPy arrays as it is."""

    def __init__(self, spec: ModelSpec, function: Callable[..., Any]) -> None:
        super().__init__(spec, "numpy", function, spec.nbytes)
        self.accepts = keywords_of(function)
        self._kept = KeptMemory()

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None = None
    ) -> Any:
        """Return what the function makes of one batch."""
        function = self.function(method)
        if self._kept.keeps is False:
            return function(*args, **kwargs)
        return self._kept.run(self.target, lambda: function(*args, **kwargs))


class ModuleModel(LoadedModel):
    """A torch module in ``eval()``, run under inference mode."""

    def __init__(
        self, spec: ModelSpec, module: torch.nn.Module, device: torch.device
    ) -> None:
        super().__init__(spec, "tensor", module, tensor_bytes(module))
        self.device = device
        self.floating = floating_dtype(module)
        self.accepts = keywords_of(module.forward)
        self._compiled = _compiled(spec, module)
        self._kept = KeptMemory()

    def call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], method: str | None = None
    ) -> Any:
        """Return the output for one batch of tensors on the model's device."""
        with torch.inference_mode():
            if method is None and self._compiled is not None:
                return self._call_compiled(self._compiled, args, kwargs)
            function = self.function(method)
            if self._kept.keeps is False:
                return function(*args, **kwargs)
            return self._kept.run(self.target, lambda: function(*args, **kwargs))

    def find_token_rules(self, method: str | None) -> TokenRules:
        """Read it off the module's config and code, too."""
        function = self.target.forward if method is None else self.function(method)
        accepts = self.accepts if method is None else keywords_of(function)
        if accepts is None and method == "generate":
            accepts = self.accepts  # what it does not take itself, forward gets
        return token_rules(self.target, function, accepts)

    def quantized(self, nbytes: int) -> None:
        """Take note of layers that were exchanged for others of so many bytes."""
        self.nbytes = tensor_bytes(self.target) + nbytes
        self.floating = torch.float32
        self._compiled = _compiled(self.spec, self.target)

    def _call_compiled(
        self, compiled: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # Only what the module itself can run separates a failed compilation from
            # a batch that the model refuses.
            output = self.target(*args, **kwargs)
            self._compiled = None
            warn_not_compiled(self.spec, error)
            return output

    def close(self) -> None:
        """Free the weights, of the compiled module too."""
        self._compiled = None
        super().close()


def _compiled(spec: ModelSpec, module: torch.nn.Module) -> Callable[..., Any] | None:
    if spec.compile is None:
        return None
    options: dict[str, Any] = dict(spec.compile)
    try:
        return torch.compile(module, **options)
    except Exception as error:
        warn_not_compiled(spec, error)
        return None


_not_compiled: set[str] = set()


def warn_not_compiled(spec: ModelSpec, error: Exception) -> None:
    """Say once per process and model that it runs eagerly."""
    if spec.key in _not_compiled:
        return
    _not_compiled.add(spec.key)
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    message = f"{spec.name}: torch.compile failed ({cause}); it runs eagerly instead"
    logger.warning(message)
    warnings.warn(message, stacklevel=2)


def keywords_of(function: Callable[..., Any]) -> frozenset[str] | None:
    """Names that `function` takes as keywords; None for any, or where hidden."""
    if (signature := signature_of(function)) is None:
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    names: set[str] = set()
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            typed = _typed_keywords(function, parameter.annotation)
            if not typed:
                return None
            names |= typed
        elif parameter.kind not in positional:
            names.add(parameter.name)
    return frozenset(names)


def _typed_keywords(function: Callable[..., Any], annotation: Any) -> set[str]:
    """Keys of ``**kwargs: Unpack[SomeTypedDict]``, as Hugging Face models have it."""
    if isinstance(annotation, str):
        scope = getattr(inspect.unwrap(function), "__globals__", {})
        name = annotation.rpartition("[")[2].rstrip("]")
        return set(getattr(scope.get(name), "__annotations__", ()))
    unpacked: tuple[Any, ...] = getattr(annotation, "__args__", ())
    keys = [getattr(typed, "__annotations__", {}) for typed in unpacked]
    return set().union(*keys)
