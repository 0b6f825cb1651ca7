"""Layers as calls of one operator that torch does not look into.

In the copy that is exported each layer takes its arguments apart and calls
``dask_infer::layer``, of which ``torch.export`` sees the inputs and outputs alone. So
code inside layers may do anything that is repeatable, and puts no guard on the graph.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dask_infer.model.identity import pickling
from dask_infer.model.shapes.fake_model import private_copy
from dask_infer.model.split.export.learn_layer import NotOpaqueError, Operands, learn
from dask_infer.model.split.export.model_state import described, reached
from dask_infer.model.split.layer_call import (
    Arguments,
    Input,
    NewTensor,
    Signature,
    known_sizes,
    size_by,
)
from dask_infer.model.split.nesting import UnknownValue, put_together
from dask_infer.model.split_refusals import NotExactError

_library = torch.library.Library("dask_infer", "DEF")
_library.define("layer(int site, Tensor[] tensors, SymInt[] sizes) -> Tensor[]")
OPERATOR = torch.ops.dask_infer.layer.default


class CallSite(NamedTuple):
    """One call of a layer in an export."""

    path: str
    arguments: Arguments
    signature: Signature
    #: Whether code of the model's own was exported for the sizes that it returns.
    has_glue: bool = True


#: Calls of the exports that are running, by number.
_sites: dict[int, CallSite] = {}
_numbers = itertools.count()


def _fake(site: int, tensors: list[torch.Tensor], sizes: list[Any]) -> Any:
    known = known_sizes(tensors, sizes)
    made = []
    for one in _sites[site].signature.made:
        shape = [size_by(rule, known) for rule in one.shape]
        for axis, size in enumerate(shape):
            if size is None:
                shape[axis] = torch.library.get_ctx().new_dynamic_size()
        made.append(torch.empty(shape, dtype=one.dtype))
    return made


torch.library.register_fake("dask_infer::layer", _fake, lib=_library)


class OpaqueLayers:
    """Replaces the calls of a model's layers; a context manager around one export.

    Parameters
    ----------
    module, mode
        The copy to export, and the mode of its fake parameters.
    on_meta
        Another copy: layers that are alike there are learned once.
    paths
        The layers.
    """

    def __init__(
        self,
        module: nn.Module,
        on_meta: nn.Module,
        paths: Iterable[str],
        mode: FakeTensorMode,
    ) -> None:
        self._mode = mode
        #: Copies to learn from: an export swaps the tensors of the originals.
        self._copies: dict[Any, nn.Module] = {}
        self._known: dict[Any, Signature] = {}
        #: Calls in this export, by number.
        self.sites: dict[int, CallSite] = {}
        #: What layers held as the call of the model began, as they do on their stages.
        self._held: dict[str, Any] = {}
        self._layers = layers = {path: module.get_submodule(path) for path in paths}
        self._marks = {
            path: fingerprint(on_meta.get_submodule(path)) or path for path in layers
        }
        for path, mark in self._marks.items():
            if mark not in self._copies:
                self._copies[mark] = private_copy(layers[path])
        for path, layer in layers.items():
            # Torch's private name (2.13) for what replaces a call, hooks included.
            call = functools.partial(self._call, path, layer, _hooks(layer))
            layer._compiled_call_impl = call

    def __enter__(self) -> OpaqueLayers:
        return self

    def __exit__(self, *error: object) -> None:
        for site in self.sites:
            del _sites[site]

    def begin(self) -> None:
        """Note what the layers hold, as a call of the model begins."""
        self._held = {path: _state(one) for path, one in self._layers.items()}

    def _call(
        self, path: str, layer: nn.Module, hooks: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Return what a call of a layer returns, as one step where that is exact."""
        if torch.is_autocast_enabled("cpu"):
            raise NotExactError(f'it runs "{path}" in mixed precision')
        try:
            # Some models add hooks as they run, to return what layers return, and some
            # set what a layer reads before they call it.
            if _hooks(layer) == hooks and _state(layer) == self._held[path]:
                return self._opaque(path, args, kwargs)
        except (NotOpaqueError, UnknownValue):
            pass
        return layer._call_impl(*args, **kwargs)

    def _opaque(self, path: str, args: Any, kwargs: Any) -> Any:
        arguments, tensors, sizes = Arguments.of(args, kwargs)
        operands, mark = Operands.of(tensors, sizes), self._marks[path]
        key = mark, repr((arguments, operands))
        if key not in self._known:
            like = path, self._copies[mark]
            self._known[key] = learn(*like, arguments, operands, self._mode)
        signature, number = self._known[key], next(_numbers)
        self.sites[number] = _sites[number] = CallSite(path, arguments, signature)
        made = dict(zip(signature.made, OPERATOR(number, tensors, sizes), strict=True))
        known = known_sizes(tensors, sizes)

        def returned(leaf: Any) -> Any:
            if isinstance(leaf, NewTensor):
                return made[leaf]
            if isinstance(leaf, Input):
                return tensors[leaf.place]
            return size_by(leaf, known)

        return put_together(signature.structure, map(returned, signature.leaves))


def _state(layer: nn.Module) -> Any:
    return described(layer), reached(layer)


def _hooks(layer: nn.Module) -> list[int]:
    return [*layer._forward_pre_hooks, *layer._forward_hooks]


class _Unnumbered(pickling.Pickler):
    """Leaves out what layers of transformers 5 call their own number in the model."""

    def reducer_override(self, obj: Any) -> Any:
        """Return how to pickle `obj`; NotImplemented for pickle's default."""
        if isinstance(obj, nn.Module) and _NUMBERS & vars(obj).keys():
            state = {k: v for k, v in vars(obj).items() if k not in _NUMBERS}
            return nn.Module, (), {"class": type(obj), **state}
        return super().reducer_override(obj)


_NUMBERS = frozenset({"layer_idx", "layer_id"})


def fingerprint(layer: nn.Module) -> bytes | None:
    """Return what is equal for layers on meta that compute the same but for numbers.

    None for one that is like no other.
    """
    written = io.BytesIO()
    try:
        _Unnumbered(written).dump(layer)
    except Exception:
        return None
    return hashlib.sha256(written.getvalue()).digest()
