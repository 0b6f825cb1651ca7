"""Layers as calls of one operator that torch does not look into.

In the copy that is exported each layer takes its arguments apart and calls
``dask_infer::layer``, of which ``torch.export`` sees the inputs and outputs alone. So
code inside layers may do anything that is repeatable, and puts no guard on the graph.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dask_infer.model.shapes.fake_model import private_copy
from dask_infer.model.split.export.learn_layer import (
    LayerCall,
    NotOpaqueError,
    learn,
    operands,
)
from dask_infer.model.split.layer_returns import (
    Input,
    NewTensor,
    Signature,
    known_sizes,
    size_by,
)
from dask_infer.model.split.nesting import UnknownValue, put_together, take_apart
from dask_infer.model.split_refusals import NotExactError

_library = torch.library.Library("dask_infer", "DEF")
_library.define("layer(int site, Tensor[] tensors, SymInt[] sizes) -> Tensor[]")
OPERATOR = torch.ops.dask_infer.layer.default


@dataclass(frozen=True)
class CallSite:
    """One call of a layer in an export."""

    path: str
    call: LayerCall
    signature: Signature


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
    module
        The copy to export.
    marks
        Its layers by path, and their fingerprints: layers that are alike are learned
        once. None for a layer that is like no other.
    mode
        Of the copy's fake parameters.
    """

    def __init__(
        self, module: nn.Module, marks: Mapping[str, bytes | None], mode: FakeTensorMode
    ) -> None:
        self._mode = mode
        self._layers = {path: module.get_submodule(path) for path in marks}
        self._marks = {path: mark or path for path, mark in marks.items()}
        #: Copies to learn from: an export swaps the tensors of the originals.
        self._copies: dict[Any, nn.Module] = {}
        self._known: dict[Any, Signature] = {}
        #: Calls in this export, by number.
        self.sites: dict[int, CallSite] = {}

    def __enter__(self) -> OpaqueLayers:
        for path, layer in self._layers.items():
            if self._marks[path] not in self._copies:
                self._copies[self._marks[path]] = private_copy(layer)
        for path, layer in self._layers.items():
            # Torch's private name (2.13) for what replaces a call, hooks included.
            call = functools.partial(self._call, path, layer, _hooks(layer))
            layer._compiled_call_impl = call
        return self

    def __exit__(self, *error: object) -> None:
        for site in self.sites:
            del _sites[site]

    def _call(
        self, path: str, layer: nn.Module, hooks: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Return what a call of a layer returns, as one step where that is exact."""
        if torch.is_autocast_enabled("cpu"):
            raise NotExactError(f'it runs "{path}" in mixed precision')
        try:
            if _hooks(layer) != hooks:
                raise NotOpaqueError(f'"{path}" gets hooks as the model runs')
            return self._opaque(path, args, kwargs)
        except (NotOpaqueError, UnknownValue):
            return layer._call_impl(*args, **kwargs)

    def _opaque(self, path: str, args: Any, kwargs: Any) -> Any:
        given: list[Any] = []
        structure = take_apart((args, kwargs), given)
        if structure is None or not structure.is_plain:  # fx makes no other objects
            raise NotOpaqueError(f'"{path}" is given a container of its own class')
        if any(isinstance(leaf, torch.SymFloat) for leaf in given):
            raise NotOpaqueError(f'"{path}" is given a fraction of a size')
        tensors, sizes = operands(given)
        call = LayerCall.of(structure, given, tensors, sizes)
        signature = self._signature(path, call)
        number = next(_numbers)
        self.sites[number] = _sites[number] = CallSite(path, call, signature)
        made = dict(zip(signature.made, OPERATOR(number, tensors, sizes), strict=True))
        known = known_sizes(tensors, sizes)

        def returned(leaf: Any) -> Any:
            if isinstance(leaf, NewTensor):
                return made[leaf]
            if isinstance(leaf, Input):
                return tensors[leaf.place]
            return size_by(leaf, known)

        return put_together(signature.structure, map(returned, signature.leaves))

    def _signature(self, path: str, call: LayerCall) -> Signature:
        key = (mark := self._marks[path], repr(call))
        if key not in self._known:
            self._known[key] = learn(path, self._copies[mark], call, self._mode)
        return self._known[key]


def _hooks(layer: nn.Module) -> list[int]:
    return [*layer._forward_pre_hooks, *layer._forward_hooks]
