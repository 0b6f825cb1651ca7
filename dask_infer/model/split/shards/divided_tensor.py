"""A tensor of which every shard holds a part, and what becomes of it in a forward.

To the model's code it looks like the whole tensor: sizes, dtype and device are those of
the whole. Operations that have a rule (`rules.py`) work on the parts. Before any other
operation the parts are put together, so the result is right whatever the code does.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from dask_infer.model.split.shards.axis_parts import AxisParts
from dask_infer.model.split.shards.collective import (
    current_collective,
    refuse_change,
    watched,
)

#: Attributes that give another tensor; all others describe the whole.
_TENSORS = frozenset({"T", "mT", "H", "mH", "data", "real", "imag", "_base", "grad"})
_DESCRIBE = frozenset(
    {
        *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel),
        *(torch.Tensor.nelement, torch.Tensor.__len__, torch.Tensor.stride),
        *(torch.Tensor.is_floating_point, torch.is_floating_point, torch.numel),
        *(torch.Tensor.is_complex, torch.is_complex, torch.Tensor.element_size),
        *(torch.Tensor.is_contiguous, torch.Tensor.__hash__, torch.Tensor.ndimension),
    }
)
_Tensor: Any = torch.Tensor
_SET_DATA = _Tensor.data.__set__
#: Memory is that of the part.
_OF_PART = frozenset({torch.Tensor.untyped_storage, torch.Tensor.data_ptr})

#: What a rule returns where it does not apply.
NO_RULE: Any = object()
Rule = TypeVar("Rule", bound=Callable[..., Any])
#: The rules by the functions that they are of, in the order in which they are tried.
RULES: dict[Any, tuple[Callable[..., Any], ...]] = {}


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Let a function be the rule of others; it is tried before earlier ones."""

    def register(given: Rule) -> Rule:
        for function in functions:
            RULES[function] = (given, *RULES.get(function, ()))
        return given

    return register


class DividedTensor(torch.Tensor):
    """A tensor that is divided along one of its axes.

    Parameters
    ----------
    part
        What this shard holds.
    dim
        The axis, counted from the front.
    pieces
        Which items of the axis each shard holds.
    is_parameter
        It stands for a parameter of a module.
    stays
        Results are divided as long as operations have rules (`divided_results.py`), and
        put together where one has none; else at once.
    origin
        The weight that it is a result of.
    """

    part: torch.Tensor
    dim_divided: int
    pieces: AxisParts
    stays: bool
    origin: DividedTensor | None

    @staticmethod
    def __new__(
        cls,
        part: torch.Tensor,
        dim: int,
        pieces: AxisParts,
        is_parameter: bool = False,
        stays: bool = False,
        origin: DividedTensor | None = None,
    ) -> DividedTensor:
        """Make the wrapper, which has no memory of its own."""
        shape = list(part.shape)
        shape[dim] = pieces.size
        made: DividedTensor = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=part.dtype, device=part.device
        )
        made.part, made.dim_divided, made.pieces = part, dim, pieces
        made.stays, made.origin = stays, origin
        # How torch knows a parameter of another class than `nn.Parameter`.
        made._is_param = is_parameter
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __repr__(self) -> str:  # type: ignore[override]
        shape, dim = tuple(self.shape), self.dim_divided
        return f"<DividedTensor {shape}, axis {dim} in {self.pieces}>"

    def again(
        self, part: torch.Tensor, dim: int, pieces: AxisParts | None = None
    ) -> DividedTensor:
        """Return a result that is divided as this tensor is."""
        origin = self if self.origin is None else self.origin
        pieces = pieces or self.pieces
        return DividedTensor(part, dim, pieces, stays=self.stays, origin=origin)

    def wish(self, kind: str, value: Any) -> None:
        """Note how the weight would better be divided, where a trial asks."""
        wishes = current_collective().wishes
        if wishes is not None and self.stays:
            wishes[id(self if self.origin is None else self.origin)] = (kind, value)

    def whole(self) -> torch.Tensor:
        """Return the tensor put together; an exchange among all shards."""
        parts = current_collective().exchange(self.part)
        return self.pieces.join(parts, self.dim_divided)

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function by its rule, or on whole tensors."""
        kwargs = kwargs or {}
        if func in _OF_PART:
            return func(args[0].part)
        if func in _DESCRIBE or _is_description(func):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func == _SET_DATA:
            refuse_change()
        for each in RULES.get(func, ()):
            if _takes(each, args, kwargs):
                with torch._C.DisableTorchFunctionSubclass():
                    given = each(*args, **kwargs)
                if given is not NO_RULE:
                    return given
        args, kwargs = pytree.tree_map_only(DividedTensor, _whole, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator that a function of torch called, on whole tensors."""
        args, kwargs = pytree.tree_map_only(DividedTensor, _whole, (args, kwargs or {}))
        return func(*args, **kwargs)


def _whole(tensor: DividedTensor) -> torch.Tensor:
    return watched(tensor.whole)


def _takes(
    each: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Whether arguments are as a rule names them; torch may have other names."""
    try:
        _signature(each).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


_signature = functools.cache(inspect.signature)


def _is_description(func: Any) -> bool:
    """Whether a function reads an attribute that describes the whole tensor."""
    if getattr(func, "__name__", "") != "__get__":
        return False
    return getattr(func.__self__, "__name__", "") not in _TENSORS
