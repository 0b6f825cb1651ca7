"""Operations on results that stay divided: each shard goes on with its part.

So the outputs of one layer reach the next one without an exchange, as heads of
attention and the wide middle of a network do. A rule applies only where it is exact by
itself; without one the parts are put together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F

from dask_infer.model.split.shards.axis_parts import AxisParts
from dask_infer.model.split.shards.collective import current_collective
from dask_infer.model.split.shards.divided_tensor import (
    NO_RULE,
    DividedTensor,
    rule,
)

_Tensor: Any = torch.Tensor

#: Names of functions of one value at a time, or of values at the same place.
_ELEMENTWISE = (
    *("abs", "add", "bfloat16", "celu", "clamp", "clone", "div", "double"),
    *("dropout", "elu", "erf", "exp", "float", "gelu", "half", "hardsigmoid", "pow"),
    *("hardswish", "hardtanh", "leaky_relu", "logsigmoid", "masked_fill", "maximum"),
    *("minimum", "mish", "mul", "neg", "reciprocal", "relu", "relu6", "rsqrt", "where"),
    *("sigmoid", "silu", "softplus", "sqrt", "square", "sub", "tanh", "true_divide"),
    *("__add__", "__radd__", "__mul__", "__rmul__", "__sub__", "__rsub__", "__pow__"),
    *("__truediv__", "__rtruediv__", "__rdiv__", "__div__", "__neg__"),
)


def applies(*values: Any) -> bool:
    """Whether one of the values is a result that stays divided."""
    return any(isinstance(v, DividedTensor) and v.stays for v in values)


def aligned(values: Sequence[Any]) -> tuple[DividedTensor, int, list[Any]] | None:
    """Return a divided value, its axis from the end, and what this shard holds of all.

    None where they are not divided alike.
    """
    divided = [v for v in values if isinstance(v, DividedTensor)]
    first = next(v for v in divided if v.stays)
    dim = first.dim_divided - first.dim()
    for other in divided:
        if other.dim_divided - other.dim() != dim or other.pieces != first.pieces:
            return None
    parts = []
    for value in values:
        if isinstance(value, DividedTensor):
            value = value.part
        elif isinstance(value, torch.Tensor) and value.dim() >= -dim:
            if value.shape[dim] == first.pieces.size != 1:
                value = first.pieces.take(value, dim, current_collective().shard)
            elif value.shape[dim] != 1:
                return None
        parts.append(value)
    return first, dim, parts


def _elementwise(function: Any) -> Any:
    def elementwise(*values: Any, **options: Any) -> Any:
        plain = not any(isinstance(v, torch.Tensor) for v in options.values())
        if not applies(*values) or not plain or {"out", "inplace"} & set(options):
            return NO_RULE
        if options.get("training") or any(v is True for v in values):  # dropout
            return NO_RULE
        if (found := aligned(values)) is None:
            return NO_RULE
        first, dim, parts = found
        result = function(*parts, **options)
        return first.again(result, result.dim() + dim)

    return elementwise


def _named(*names: str) -> list[Any]:
    """Return the functions of these names, wherever torch has them."""
    homes = (torch, _Tensor, F, torch._C._nn)
    return [getattr(home, n) for home in homes for n in names if hasattr(home, n)]


for _function in dict.fromkeys(_named(*_ELEMENTWISE)):
    rule(_function)(_elementwise(_function))


def _rule(*functions: Any) -> Callable[[Any], Any]:
    """Let a function be the rule of others, for results that stay divided."""

    def register(given: Any) -> Any:
        @functools.wraps(given)
        def checked(*args: Any, **options: Any) -> Any:
            first = args[0] if args else None
            values = first if isinstance(first, (list, tuple)) else (first,)
            return given(*args, **options) if applies(*values) else NO_RULE

        rule(*functions)(checked)
        return given

    return register


# --- shapes ----------------------------------------------------------------------


@_rule(torch.reshape, _Tensor.reshape, _Tensor.view, torch.ops.aten.reshape.default)
def reshape(x: Any, *shape: Any) -> Any:
    """Another shape, where each shard's items stay together."""
    if shape and isinstance(shape[0], torch.dtype):
        return NO_RULE
    sizes = _one_by_one(shape)
    if not all(_is_int(size) for size in sizes):
        return NO_RULE
    if -1 in sizes:
        others = prod(size for size in sizes if size != -1)
        if not others:
            return NO_RULE
        sizes[sizes.index(-1)] = x.numel() // others
    before, after = x.shape[: x.dim_divided], x.shape[x.dim_divided + 1 :]
    for dim, size in enumerate(sizes):
        if prod(sizes[:dim]) == prod(before) and size != 1:
            pieces = x.pieces.scaled(prod(after), prod(sizes[dim + 1 :]))
            if pieces is None:
                scale, unit = prod(after), prod(sizes[dim + 1 :])
                if unit % scale == 0:
                    x.wish("unit", unit // scale)
                return NO_RULE
            sizes[dim] = pieces.count(current_collective().shard)
            return x.again(x.part.reshape(sizes), dim, pieces)
    return NO_RULE


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _one_by_one(numbers: Any) -> list[Any]:
    """Return numbers that were given as several arguments, or as one sequence."""
    one = len(numbers) == 1 and not _is_int(numbers[0])
    return list(numbers[0] if one else numbers)


@_rule(torch.flatten, _Tensor.flatten)
def flatten(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Several axes as one."""
    first, last = start_dim % x.dim(), end_dim % x.dim()
    return reshape(x, [*x.shape[:first], -1, *x.shape[last + 1 :]])


@_rule(torch.unflatten, _Tensor.unflatten)
def unflatten(x: Any, dim: int, sizes: Any) -> Any:
    """One axis as several."""
    dim %= x.dim()
    return reshape(x, [*x.shape[:dim], *sizes, *x.shape[dim + 1 :]])


@_rule(torch.permute, _Tensor.permute)
def permute(x: Any, *dims: Any) -> Any:
    """Another order of axes."""
    order = [dim % x.dim() for dim in _one_by_one(dims)]
    return x.again(x.part.permute(order), order.index(x.dim_divided))


@_rule(torch.unsqueeze, _Tensor.unsqueeze)
def unsqueeze(x: Any, dim: int) -> Any:
    """One axis more."""
    dim %= x.dim() + 1
    return x.again(x.part.unsqueeze(dim), x.dim_divided + (dim <= x.dim_divided))


@_rule(_Tensor.expand)
def expand(x: Any, *sizes: Any) -> Any:
    """Axes of one item repeated."""
    wanted = _one_by_one(sizes)
    dim = x.dim_divided + len(wanted) - x.dim()
    if wanted[dim] not in (-1, x.pieces.size):
        return NO_RULE
    wanted[dim] = -1
    return x.again(x.part.expand(wanted), dim)


@_rule(_Tensor.__getitem__)
def getitem(x: Any, index: Any) -> Any:
    """Return some items of other axes; of its own all, or those of a chunk."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(
        item is None or item is Ellipsis or isinstance(item, slice) or _is_int(item)
        for item in items
    ):
        return NO_RULE
    taken = sum(item is not None and item is not Ellipsis for item in items)
    rest = [slice(None)] * (x.dim() - taken)
    if Ellipsis in items:
        place = items.index(Ellipsis)
        items[place : place + 1] = rest
    else:
        items += rest
    dim, result, pieces = -1, -1, x.pieces
    for place, item in enumerate(items):
        dim += item is not None
        result += not _is_int(item)
        if item is not None and dim == x.dim_divided:
            if _is_int(item):
                return NO_RULE
            if item != slice(None):
                found = _chunk(x, item)
                if found is None:
                    return NO_RULE
                items[place], pieces = found
            return x.again(x.part[tuple(items)], result, pieces)
    return NO_RULE


def _chunk(x: DividedTensor, item: slice) -> tuple[slice, AxisParts] | None:
    """Return where a shard's part of a chunk is, and the chunk's own division."""
    start, stop, step = item.indices(x.pieces.size)
    if step != 1:
        return None
    if (found := x.pieces.chunk(start, stop, current_collective().shard)) is None:
        ends = (n for n in (start, stop) if 0 < n < x.pieces.size)
        x.wish("chunks", tuple(ends))
    return found


@_rule(torch.split, _Tensor.split, torch.functional.split)
def split(x: Any, size: Any, dim: int = 0) -> Any:
    """Consecutive items of an axis."""
    dim %= x.dim()
    whole = x.shape[dim]
    if _is_int(size):
        size = [min(size, whole - start) for start in range(0, whole, size)]
    if dim != x.dim_divided:
        return tuple(x.again(p, x.dim_divided) for p in x.part.split(list(size), dim))
    ends = [sum(size[: n + 1]) for n in range(len(size))]
    slices = [slice(end - each, end) for end, each in zip(ends, size, strict=True)]
    found = [_chunk(x, item) for item in slices]
    if any(each is None for each in found):
        x.wish("chunks", tuple(ends[:-1]))
        return NO_RULE
    front = (slice(None),) * dim
    return tuple(
        x.again(x.part[(*front, each[0])], dim, each[1]) for each in found if each
    )


@_rule(torch.chunk, _Tensor.chunk)
def chunk(x: Any, chunks: int, dim: int = 0) -> Any:
    """So many chunks of an axis."""
    return split(x, -(-x.shape[dim] // chunks), dim)


@_rule(torch.unbind, _Tensor.unbind)
def unbind(x: Any, dim: int = 0) -> Any:
    """Each item of another axis."""
    dim %= x.dim()
    if dim == x.dim_divided:
        return NO_RULE
    place = x.dim_divided - (dim < x.dim_divided)
    return tuple(x.again(part, place) for part in x.part.unbind(dim))


@_rule(torch.cat)
def cat(tensors: Any, dim: int = 0) -> Any:
    """Along another axis, of tensors that are divided alike."""
    first = tensors[0]
    if not all(
        isinstance(x, DividedTensor)
        and (x.dim_divided, x.pieces, x.dim())
        == (first.dim_divided, first.pieces, first.dim())
        for x in tensors
    ):
        return NO_RULE
    if dim % first.dim() == first.dim_divided:
        return NO_RULE
    return first.again(torch.cat([x.part for x in tensors], dim), first.dim_divided)


# --- sums ------------------------------------------------------------------------


def _over_axis(function: Any) -> Any:
    def over_axis(x: Any, dim: Any = None, *args: Any, **options: Any) -> Any:
        """Compute along another axis."""
        if not _is_int(dim) or dim % x.dim() == x.dim_divided:
            return NO_RULE
        result = function(x.part, dim, *args, **options)
        lost = result.dim() < x.dim() and dim % x.dim() < x.dim_divided
        return x.again(result, x.dim_divided - lost)

    return over_axis


for _function in _named("softmax", "mean", "sum", "amax"):
    _rule(_function)(_over_axis(_function))


@_rule(F.scaled_dot_product_attention)
def attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, *args: Any, **options: Any
) -> Any:
    """Each shard has some of the heads."""
    states = (query, key, value)
    if not all(isinstance(x, DividedTensor) and x.dim_divided == 1 for x in states):
        return NO_RULE
    if query.dim() != 4 or key.pieces != value.pieces:
        return NO_RULE
    if query.pieces != key.pieces and not (
        options.get("enable_gqa")
        and query.pieces == key.pieces.scaled(query.pieces.size, key.pieces.size)
    ):
        return NO_RULE
    if attn_mask is not None:
        if (found := aligned([query, attn_mask])) is None:
            return NO_RULE
        attn_mask = found[2][1]
    parts = [x.part for x in states]
    attend: Any = F.scaled_dot_product_attention
    result = attend(*parts, attn_mask, *args, **options)
    return query.again(result, 1)


@_rule(torch.matmul, _Tensor.matmul, _Tensor.__matmul__, torch.bmm, _Tensor.bmm)
def matmul(x: Any, other: Any) -> Any:
    """Of a batch of matrices, some on each shard."""
    if x.dim_divided - x.dim() > -3 or other.dim() < 2:
        return NO_RULE
    if (found := aligned([x, other])) is None:
        return NO_RULE
    first, dim, (left, right) = found
    result = left @ right
    return first.again(result, result.dim() + dim)
