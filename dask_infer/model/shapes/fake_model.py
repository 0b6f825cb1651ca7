"""A model without its weights: the same code and sizes, fake tensors for numbers.

Nothing of the caller's module is copied but its structure: deep copies meet fake
tensors wherever a tensor was, so modes, buffers and cached attributes of the copy are
its own and the weights stay where they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from types import CellType, FunctionType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from dask_infer.model.runtime.footprint import with_attributes


def weightless(
    module: torch.nn.Module, mode: FakeTensorMode, dtype: torch.dtype | None
) -> torch.nn.Module:
    """Return a copy in eval mode with fake tensors, floating ones as `dtype`."""
    if isinstance(module, torch.jit.ScriptModule):
        return _scripted(module, dtype)
    if getattr(module, "traced_as_it_is", False):
        return module  # loaded for this trace alone
    memo: dict[int, Any] = {}
    for tensor in chain(module.parameters(), module.buffers()):
        memo[id(tensor)] = _fake(tensor, mode, dtype)
    return structure_copy(module, memo, lambda tensor: _fake(tensor, mode, None))


def _scripted(
    module: torch.jit.ScriptModule, dtype: torch.dtype | None
) -> torch.nn.Module:
    """Return the script itself where nothing is to change: its copies hold weights."""
    training = any(getattr(part, "training", False) for part in module.modules())
    if dtype is None and not training:
        return module
    copied: torch.nn.Module = copy.deepcopy(module)
    copied = copied.eval() if training else copied
    return copied if dtype is None else copied.to(dtype)


def structure_copy(
    module: torch.nn.Module,
    memo: dict[int, Any],
    other: Callable[[torch.Tensor], torch.Tensor],
) -> torch.nn.Module:
    """Return a deep copy in eval mode, without copying any tensor.

    Parameters
    ----------
    memo
        What stands for objects of the module, by their ids.
    other
        What stands for any other tensor that it holds.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if id(tensor) in memo:
            with_attributes(memo[id(tensor)], tensor)
    with _TensorCopy(other):
        copied: torch.nn.Module = copy.deepcopy(module, memo)
        for part in copied.modules():
            _own_functions(part, memo)
    with suppress(NotImplementedError):  # exported programs have one mode
        copied.eval()
    return copied


def private_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy to be changed, with the same parameters and buffers."""
    weights = (*module.parameters(), *module.buffers())
    memo: dict[int, Any] = {id(tensor): tensor for tensor in weights}
    return structure_copy(module, memo, lambda tensor: tensor.detach().clone())


def named_tensors(
    module: torch.nn.Module, path: str = ""
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every parameter and buffer under each of its names, after `path`."""
    yield from module.named_parameters(path, remove_duplicate=False)
    yield from module.named_buffers(path, remove_duplicate=False)


def _own_functions(part: torch.nn.Module, memo: dict[int, Any]) -> None:
    """Give hooks and patched methods closures of their own.

    A hook that collects activations must not collect fake ones for the caller, and a
    patched ``forward`` that closes over the module must mean the copy.
    """
    tables: tuple[Any, ...] = (part._forward_pre_hooks, part._forward_hooks, vars(part))
    for table in tables:
        for key, function in list(table.items()):
            if isinstance(function, FunctionType) and function.__closure__:
                table[key] = _own_closure(function, memo)


def _own_closure(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    cells = []
    for cell in function.__closure__ or ():
        with suppress(Exception):  # empty, or holds what cannot be copied: stays shared
            cell = CellType(copy.deepcopy(cell.cell_contents, memo))
        cells.append(cell)
    own = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells),
    )
    own.__kwdefaults__ = function.__kwdefaults__
    own.__dict__.update(function.__dict__)
    return own


class _TensorCopy(TorchFunctionMode):
    """Says what copies of tensors are that modules hold beside their registers."""

    def __init__(self, stand_in: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.stand_in = stand_in
        super().__init__()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self.stand_in(tensor)
            return memo[id(tensor)]
        if func is torch._C.TensorBase.clone:  # how parameters copy themselves
            return self.stand_in(args[0])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _fake(
    tensor: torch.Tensor, mode: FakeTensorMode, dtype: torch.dtype | None
) -> torch.Tensor:
    """Return a fake of `tensor`; meta tensors become fakes of CPU tensors."""
    casts = dtype is not None and tensor.is_floating_point() and tensor.dtype != dtype
    on_meta = tensor.device.type == "meta"
    fake: torch.Tensor
    if casts or on_meta:
        with mode:
            fake = torch.empty_strided(
                tensor.shape,
                tensor.stride(),
                dtype=dtype if casts else tensor.dtype,
                device="cpu" if on_meta else tensor.device,
            )
    else:
        fake = mode.from_tensor(tensor.detach(), static_shapes=True)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake
