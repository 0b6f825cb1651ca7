"""The code around a model's layers, followed by ``torch.fx``, the layers left whole.

`fx.Tracer.trace` patches every module of the process while it runs; here the modules of
a private copy get classes of their own instead, so that models which run meanwhile in
other threads are not drawn in (torch 2.13).
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import PreDispatchTorchFunctionMode
from torch.fx.proxy import ParameterProxy, TraceError

from dask_infer.model.shapes.fake_model import named_tensors
from dask_infer.model.split.outputs import Leaf, Node, take_apart
from dask_infer.model.split.program import Held, Ref, Step, leaves, replaced

Key = int | str


#: Functions that take sizes, and ask values for numbers before fx hears of them.
_OF_SIZES = (
    *((torch, name) for name in ("arange", "zeros", "ones", "full", "eye", "linspace")),
    *((math, name) for name in ("sqrt", "ceil", "floor", "log", "log2")),
)


class Unfollowed(Exception):
    """Why the layers cannot be told from what is around them."""


@dataclass(frozen=True)
class Followed:
    """What a model does between its layers."""

    inputs: Mapping[Key, str]
    steps: tuple[Step, ...]
    structure: Leaf | Node
    outputs: tuple[Any, ...]
    #: Values of tensors that the code makes of nothing.
    constants: Mapping[str, torch.Tensor]
    #: Place of the first step of each module that runs, by its first path.
    places: Mapping[str, int]


def follow(
    module: nn.Module, whole: frozenset[str], keys: list[Key], extra: Mapping[str, Any]
) -> Followed:
    """Follow a call of a module, whose copy this changes.

    Parameters
    ----------
    module
        A private copy in eval mode, its parameters and buffers on meta.
    whole
        First paths of the layers that are not looked into.
    keys, extra
        Places and keywords of the inputs, and constant keyword arguments.

    Raises
    ------
    Unfollowed, torch.fx.proxy.TraceError
        If it chooses by values, or does what steps cannot repeat.
    """
    tracer = _Tracer(module, whole)
    made = {key: tracer.placeholder(key) for key in keys}
    args = [value for key, value in made.items() if isinstance(key, int)]
    kwargs = {key: value for key, value in made.items() if isinstance(key, str)}
    regions = _Regions()
    with torch.no_grad(), regions, _recorded(tracer):
        output = module(*args, **kwargs, **extra)
    if regions.entered:
        raise Unfollowed("it runs layers within torch.autocast")
    if tracer.refusal is not None:  # the code went on after it
        raise tracer.refusal
    flat: list[Any] = []
    structure = take_apart(output, flat)
    outputs = tuple(_output(leaf) for leaf in flat)
    steps = tuple(_step(n) for n in tracer.graph.nodes if n.op.startswith("call_"))
    inputs = {key: proxy.node.name for key, proxy in made.items()}
    constants = dict(tracer.constants)
    return Followed(inputs, steps, structure, outputs, constants, dict(tracer.places))


def in_place(name: str, *args: Any) -> Any:
    """Run an operator that changes its first argument, as ``x += 1`` does."""
    return getattr(operator, name)(*args)


class _Value(fx.Proxy):
    """A value; records the changes in place that fx takes for new values."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self._change("setitem", key, value)

    def _change(self, name: str, *args: Any) -> Any:
        arguments = (name, self, *args)
        return self.tracer.create_proxy("call_function", in_place, arguments, {})


def _changing(name: str) -> Callable[[_Value, Any], Any]:
    return lambda value, other: value._change(name, other)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(_Value, f"__i{_name}__", _changing(f"i{_name}"))
for _name in ("and", "or", "xor", "lshift", "rshift"):
    setattr(_Value, f"__i{_name}__", _changing(f"i{_name}"))


class _Tracer(fx.Tracer):
    """Records calls of whole layers, and of functions between them."""

    def __init__(self, module: nn.Module, whole: frozenset[str]) -> None:
        super().__init__()
        self.root, self.whole = module, whole
        self.graph = fx.Graph(tracer_cls=type(self))
        self.paths = {id(part): path for path, part in module.named_modules()}
        self.names: dict[int, str] = {}
        for name, tensor in named_tensors(module):
            self.names.setdefault(id(tensor), name)
        self.kept: list[torch.Tensor] = []
        self.constants: dict[str, torch.Tensor] = {}
        self.places: dict[str, int] = {}
        self.count = 0
        self.refusal: TraceError | None = None
        for part in list(module.modules()):
            part.__class__ = self._own_class(type(part))

    def _own_class(self, kind: Any) -> Any:
        space = {"_tracer": self, "__module__": kind.__module__}
        return type(kind)(kind.__name__, (_Part, kind), space)

    def placeholder(self, key: Key) -> Any:
        name = f"input_{key}" if isinstance(key, int) else key
        return self.create_proxy("placeholder", name, (), {})

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        self.count += kind.startswith("call_")
        return super().create_node(kind, *args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor):
            return self.create_node("get_attr", self._name(a), (), {})
        if isinstance(a, nn.Module):
            raise Unfollowed(f"it hands its module {type(a).__name__} to a function")
        return super().create_arg(a)

    def _name(self, tensor: torch.Tensor) -> str:
        if id(tensor) not in self.names:
            if tensor.is_meta:
                raise Unfollowed("it makes new tensors of its weights as it runs")
            name = f"constant_of_code_{len(self.constants)}"
            self.names[id(tensor)] = name
            self.kept.append(tensor)  # its id stays its own
            self.constants[name] = tensor.detach().clone()
        return self.names[id(tensor)]

    def held(self, tensor: torch.Tensor) -> Any:
        """Return what stands for a parameter or buffer that the code reads."""
        node = self.create_arg(tensor)
        if isinstance(tensor, nn.Parameter):
            return ParameterProxy(self, node, str(node.target), tensor)
        return self.proxy(node)

    def called(
        self, part: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Record the call of a whole layer, and go on inside of others."""
        path = self.paths[id(part)]
        self.places.setdefault(path, self.count)
        if path in self.whole:
            return self.create_proxy("call_module", path, args, kwargs)
        return forward(*args, **kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        try:
            return bool(super().to_bool(obj))
        except TraceError as error:
            self.refusal = self.refusal or error
            raise

    def iter(self, obj: fx.Proxy) -> Any:
        try:
            return super().iter(obj)
        except TraceError as error:
            self.refusal = self.refusal or error
            raise


class _Part:
    """What a module of the copy does first."""

    _tracer: _Tracer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        part: Any = self
        return self._tracer.called(part, super().__call__, args, kwargs)  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)  # type: ignore[misc]
        return self._tracer.held(value) if isinstance(value, torch.Tensor) else value


@contextmanager
def _recorded(tracer: _Tracer) -> Iterator[None]:
    """Record functions of sizes; calls by other threads go through as they are."""
    thread = threading.get_ident()

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            found = (isinstance(x, fx.Proxy) for x in leaves((args, kwargs)))
            if threading.get_ident() != thread or not any(found):
                return function(*args, **kwargs)
            return tracer.create_proxy("call_function", function, args, kwargs)

        return record

    with ExitStack() as stack:
        for owner, name in _OF_SIZES:
            recorded = recording(getattr(owner, name))
            stack.enter_context(patch.object(owner, name, recorded))
        yield


class _Regions(PreDispatchTorchFunctionMode):
    """Notes regions of mixed precision: torch tells this kind of mode alone of them.

    Layers inside of one would run outside of it in a stage. Entering one must not
    raise: torch has switched it on by then, and would leave it on (2.13).
    """

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self.entered = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.amp.autocast_mode._enter_autocast:
            self.entered = True
            return None
        if func is torch.amp.autocast_mode._exit_autocast:
            return None
        return func(*args, **(kwargs or {}))


def _leaf(value: Any) -> Any:
    if isinstance(value, fx.Node):
        held = value.op == "get_attr"
        return Held(str(value.target)) if held else Ref(value.name)
    return value


def _step(node: fx.Node) -> Step:
    kind: Any = node.op.removeprefix("call_")
    args, kwargs = replaced(tuple(node.args), _leaf), replaced(node.kwargs, _leaf)
    return Step(node.name, kind, node.target, args, dict(kwargs))


def _output(value: Any) -> Any:
    leaf = _leaf(value.node) if isinstance(value, fx.Proxy) else value
    if isinstance(leaf, (Held, torch.Tensor)):
        raise Unfollowed("it returns a tensor that it does not compute")
    return leaf
