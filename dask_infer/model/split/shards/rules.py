"""What operations do with a divided weight: each shard computes a part of the result.

A weight that is divided along what it puts out gives a part of the outputs, and these
are put together. One that is divided along what it takes in gives a summand of all
outputs, and these are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from dask_infer.model.split.shards.collective import current_collective
from dask_infer.model.split.shards.divided_tensor import NO_RULE, DividedTensor, rule

aten: Any = torch.ops.aten
_Tensor: Any = torch.Tensor


def is_divided(value: Any, dim: int) -> bool:
    """Whether a value is divided along an axis, counted from the end."""
    return isinstance(value, DividedTensor) and value.dim_divided == value.dim() + dim


def _joined(part: torch.Tensor, dim: int, weight: DividedTensor) -> Any:
    """Return outputs that are divided as the weight is, put together or as they are."""
    result = weight.again(part, part.dim() + dim)
    return result if weight.stays else result.whole()


def _taken(value: Any, dim: int, weight: DividedTensor) -> torch.Tensor:
    """Return this shard's part of a value, as the weight is divided."""
    if isinstance(value, DividedTensor):
        return value.part
    return weight.pieces.take(value, dim, current_collective().shard)


def _bias(bias: Any, weight: DividedTensor) -> Any:
    # One number may stand for all outputs.
    return None if bias is None else _taken(bias.expand(weight.pieces.size), 0, weight)


def _product(
    multiply: Callable[[Any, Any, Any], Any],
    x: Any,
    weight: Any,
    dim: int,
    bias: Any = None,
) -> Any:
    """Return a product by parts: put together, or added.

    Either `x` is whole, or it is divided along its last axis, as the weight is along
    what it takes in.

    Parameters
    ----------
    multiply
        Of `x`, a weight, and a bias or None.
    dim
        The axis of the weight, from the end, along which it takes in.
    """
    if isinstance(x, DividedTensor):
        if not is_divided(x, -1) or not isinstance(weight, DividedTensor):
            return NO_RULE
        if not is_divided(weight, dim) or x.pieces != weight.pieces:
            if x.stays:
                weight.wish("row", x.pieces)
            return NO_RULE
    if is_divided(weight, -3 - dim):
        return _joined(multiply(x, weight.part, _bias(bias, weight)), -1, weight)
    if is_divided(weight, dim):
        summand = multiply(_taken(x, -1, weight), weight.part, None)
        total = current_collective().sum(summand)
        return total if bias is None else total + bias
    return NO_RULE


def _multiply(x: Any, weight: Any, bias: Any) -> Any:
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


@rule(F.linear, aten.linear.default)
def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    """Weights are (outputs, inputs)."""
    return _product(F.linear, x, weight, -1, bias)


@rule(torch.addmm, aten.addmm.default)
def addmm(bias: Any, x: Any, weight: Any) -> Any:
    """Weights are (inputs, outputs)."""
    return _product(_multiply, x, weight, -2, bias) if bias.dim() == 1 else NO_RULE


@rule(
    *(torch.matmul, torch.mm, torch.bmm, torch.Tensor.matmul, torch.Tensor.mm),
    *(torch.Tensor.bmm, torch.Tensor.__matmul__, aten.mm.default, aten.bmm.default),
    aten.matmul.default,
)
def matmul(x: Any, weight: Any) -> Any:
    """Of one matrix, or of a batch of matrices with as many others."""
    if isinstance(x, DividedTensor) and not isinstance(weight, DividedTensor):
        # Weights from the left, as of batches of (outputs, inputs) by columns.
        if is_divided(x, -2) and x.dim() == weight.dim():
            return _joined(x.part @ weight, -2, x)
        return NO_RULE
    if not 2 <= weight.dim() <= x.dim():
        return NO_RULE
    return _product(_multiply, x, weight, -2)


@rule(F.grouped_mm)
def grouped_mm(x: Any, weight: Any, *, offs: Any = None, **options: Any) -> Any:
    """Rows of `x` by the matrix of their group: experts."""
    if offs is None or x.dim() != 2:
        return NO_RULE

    def multiply(rows: Any, part: Any, _: Any) -> Any:
        return F.grouped_mm(rows.contiguous(), part, offs=offs, **options)

    return _product(multiply, x, weight, -2)


@rule(F.embedding)
def embedding(
    ids: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    *rest: Any,
    **options: Any,
) -> Any:
    """Weights are (words, width)."""
    if max_norm is not None:  # it changes the weights
        return NO_RULE
    if is_divided(weight, -1):
        return _joined(F.embedding(ids, weight.part), -1, weight)
    if not is_divided(weight, -2) or len(weight.pieces.chunks) > 1:
        return NO_RULE
    ((start, stop),) = weight.pieces.ranges(current_collective().shard)
    if bool(((ids < 0) | (ids >= weight.pieces.size)).any()):
        raise IndexError("index out of range in self")  # as torch does
    other = (ids < start) | (ids >= stop)
    if stop == start:
        found = weight.part.new_zeros((*ids.shape, weight.shape[-1]))
    else:
        found = F.embedding((ids - start).masked_fill(other, 0), weight.part)
        found = found.masked_fill(other.unsqueeze(-1), 0)
    return current_collective().sum(found)


@rule(aten.embedding.default)
def aten_embedding(weight: Any, ids: Any, *options: Any) -> Any:
    """As exported programs call it."""
    return embedding(ids, weight)


def _convolution(function: Any) -> Any:
    def convolution(
        x: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        """Weights are (outputs, inputs, *window)."""
        divided = isinstance(weight, DividedTensor) and weight.dim_divided == 0
        if not divided or groups != 1 or isinstance(x, DividedTensor):
            return NO_RULE
        own = _bias(bias, weight)
        part = function(x, weight.part, own, stride, padding, dilation)
        return _joined(part, 1 - weight.dim(), weight)

    return convolution


for _function, _operator in (
    (torch.conv1d, aten.conv1d.default),
    (torch.conv2d, aten.conv2d.default),
    (torch.conv3d, aten.conv3d.default),
):
    rule(_function, _operator)(_convolution(_function))


@rule(torch.Tensor.__getitem__)
def getitem(tensor: Any, index: Any) -> Any:
    """Items of the first axis, where another one is divided."""
    if not isinstance(tensor, DividedTensor) or not tensor.dim_divided:
        return NO_RULE
    if isinstance(index, bool) or not isinstance(index, (int, torch.Tensor)):
        return NO_RULE
    if isinstance(index, torch.Tensor) and index.dtype != torch.int64:
        return NO_RULE
    part = tensor.part[index]
    dim = tensor.dim_divided + part.dim() - tensor.dim()
    return tensor.again(part, dim)


@rule(torch.transpose, torch.Tensor.transpose, aten.transpose.int)
def transpose(tensor: Any, one: int, other: int) -> Any:
    """Exchange two axes."""
    dims = tensor.dim()
    swapped = {one % dims: other % dims, other % dims: one % dims}
    dim = swapped.get(tensor.dim_divided, tensor.dim_divided)
    return tensor.again(tensor.part.transpose(one, other), dim)


@rule(torch.t, torch.Tensor.t, _Tensor.T.__get__, aten.t.default)
def transposed(tensor: Any) -> Any:
    """Exchange the axes of a matrix."""
    return transpose(tensor, 0, 1) if tensor.dim() == 2 else NO_RULE


@rule(_Tensor.mT.__get__)
def matrices_transposed(tensor: Any) -> Any:
    """Exchange the axes of matrices."""
    return transpose(tensor, -2, -1)


@rule(
    *(torch.Tensor.detach, torch.detach, torch.Tensor.contiguous),
    _Tensor.data.__get__,
)
def same(tensor: Any) -> Any:
    """Return what changes no numbers."""
    return tensor.again(tensor.part, tensor.dim_divided)


@rule(torch.Tensor.to)
def to(tensor: Any, *target: Any, **options: Any) -> Any:
    """Cast a weight, where nothing has to be done."""
    if options or len(target) != 1:
        return NO_RULE
    wanted = target[0]
    if isinstance(wanted, torch.Tensor):
        wanted = wanted.dtype if wanted.device == tensor.device else None
    return tensor if wanted in (tensor.dtype, tensor.device) else NO_RULE
