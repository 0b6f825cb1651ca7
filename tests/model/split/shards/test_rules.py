"""What becomes of divided tensors: operations by their rules, and all others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dask_infer.errors import OutputError
from dask_infer.model.runtime.footprint import tensor_bytes
from dask_infer.model.split.shards import DividedTensor
from dask_infer.model.split.shards.axis_parts import AxisParts
from dask_infer.model.split.shards.collective import Meeting
from tests.model.split.shards.ranks import on_ranks

aten: Any = torch.ops.aten


def divided(tensor: torch.Tensor, axis: int, shard: int, shards: int) -> DividedTensor:
    pieces = AxisParts.even(tensor.shape[axis], shards)
    return DividedTensor(pieces.take(tensor, axis, shard), axis, pieces)


X, IDS = torch.randn(3, 7), torch.randint(0, 11, (3, 5))
BIAS = torch.randn(11)
IMAGE = torch.randn(2, 5, 8, 8)
GROUPS = torch.tensor([2, 2, 5], dtype=torch.int32)
ROWS = torch.randn(5, 8)


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize(
    ("shape", "axis", "call", "exchanges"),
    [
        ((11, 7), 0, lambda w: F.linear(X, w, BIAS), 1),
        ((11, 7), 1, lambda w: F.linear(X, w, BIAS), 1),
        ((11, 7), 1, lambda w: F.linear(X, w), 1),
        ((11, 7), 0, lambda w: aten.linear.default(X, w), 1),
        ((7, 11), 1, lambda w: torch.addmm(BIAS, X, w), 1),
        ((7, 11), 0, lambda w: torch.addmm(BIAS, X, w), 1),
        ((7, 11), 1, lambda w: X @ w, 1),
        ((7, 11), 0, lambda w: torch.matmul(X[None], w), 1),
        ((11, 7), 0, lambda w: X @ w.T, 1),
        ((11, 4), 1, lambda w: F.embedding(IDS, w), 1),
        ((11, 4), 0, lambda w: F.embedding(IDS, w, padding_idx=0), 1),
        ((11, 4), 1, lambda w: aten.embedding.default(w, IDS), 1),
        ((6, 5, 3, 3), 0, lambda w: F.conv2d(IMAGE, w, BIAS[:6], padding=1), 1),
        ((6, 5, 3, 3), 0, lambda w: F.conv2d(IMAGE, w, stride=2), 1),
        ((6, 5, 3), 0, lambda w: F.conv1d(IMAGE[:, :, 0], w), 1),
        ((4, 11, 7), 1, lambda w: F.linear(X, w[2]), 1),
        ((4, 11, 7), 2, lambda w: F.linear(X, w[torch.tensor(1)]), 1),
        ((3, 8, 16), 2, lambda w: F.grouped_mm(ROWS, w, offs=GROUPS), 1),
        ((3, 16, 8), 1, lambda w: F.grouped_mm(ROWS, w.mT, offs=GROUPS), 1),
        ((4, 7, 3), 1, lambda w: torch.bmm(w, torch.ones(4, 3, 2)), 1),
        ((1, 4, 5), 1, lambda w: F.linear(input=ROWS[:, :5], weight=w[0]), 1),
        # No rule: the whole tensor is put together.
        ((11, 7), 0, lambda w: F.linear(X, w, torch.ones(1)), 1),
        ((7, 11), 1, lambda w: torch.addmm(torch.ones(1), X, w), 1),
        ((6, 5, 3, 3), 0, lambda w: F.conv2d(input=IMAGE, weight=w), 1),
        ((11, 7), 0, lambda w: X @ w.transpose(dim0=0, dim1=1), 1),
        ((7,), 0, lambda w: X @ w, 1),
        ((11, 7), 0, lambda w: w.sum(1), 1),
        ((11, 7), 0, lambda w: torch.cat([w, w]), 2),
        ((11, 7), 0, lambda w: w[1:3] * 2, 1),
        ((11, 7), 1, lambda w: torch.addmm(BIAS, X, w.T, beta=2), 1),
        ((11, 7), 0, lambda w: w.float().softmax(-1), 1),
        ((11, 7), 0, lambda w: torch.linalg.norm(w), 1),
        # What describes it exchanges nothing.
        ((11, 7), 0, lambda w: torch.tensor([*w.shape, w.numel(), len(w)]), 0),
        ((11, 7), 0, lambda w: torch.zeros(2, dtype=w.dtype, device=w.device), 0),
        ((11, 7), 0, lambda w: torch.tensor(w.contiguous().detach().t().shape), 0),
    ],
)
def test_operations_give_what_the_whole_tensor_gives(
    shape, axis, call, exchanges, shards, monkeypatch
):
    meetings: list[Meeting] = []
    make = Meeting.__init__
    monkeypatch.setattr(
        Meeting, "__init__", lambda self, n: (meetings.append(self), make(self, n))[1]
    )
    torch.manual_seed(1)
    whole = torch.randn(shape)
    with torch.inference_mode():
        expected = call(whole)

    def work(shard: int) -> Any:
        with torch.inference_mode():
            return call(divided(whole, axis, shard, shards))

    results = on_ranks(shards, work)
    assert meetings[0].count == exchanges
    for result in results:
        assert type(result) is torch.Tensor
        torch.testing.assert_close(result, expected)
        assert result.equal(results[0])  # to the bit: branches take the same path


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.clamp_(-0.1, 0.1),
        lambda w: w.data.mul_(2),
        lambda w: w[1:].view(-1).zero_(),
        lambda w: w.detach()[0].zero_(),
        lambda w: w.__setitem__(0, torch.zeros(7)),
        lambda w: torch.clamp(w, 0, 1, out=w),
        lambda w: setattr(w, "data", torch.zeros(11, 7)),
    ],
)
def test_a_model_that_changes_its_weights_is_refused(change):
    """Only a copy would change: values were wrong without a word."""
    whole = torch.randn(11, 7)

    def work(shard: int) -> Any:
        with torch.inference_mode():
            weight = divided(whole, 0, shard, 2)
            change(weight)
            return F.linear(X, weight)

    with pytest.raises(OutputError, match="in place a weight"):
        on_ranks(2, work)


def test_what_is_made_of_weights_may_change():
    whole = torch.randn(11, 7)

    def work(shard: int) -> Any:
        with torch.inference_mode():
            weight = divided(whole, 0, shard, 2)
            found = F.linear(X, weight).relu_() + weight.clone().zero_()[0, 0]
            return found.add_(weight.sum())

    expected = F.linear(X, whole).relu() + whole.sum()
    for result in on_ranks(2, work):
        torch.testing.assert_close(result, expected)


def test_ids_beyond_the_words_raise_on_every_shard():
    weight = torch.randn(11, 4)

    def work(shard: int) -> str:
        with pytest.raises(IndexError) as raised:
            F.embedding(IDS + 11, divided(weight, 0, shard, 2))
        return str(raised.value)

    assert on_ranks(2, work) == ["index out of range in self"] * 2


def test_a_divided_weight_is_a_parameter_of_its_module():
    layer = nn.Linear(7, 10, bias=False)
    whole = layer.weight.detach()
    pieces = AxisParts.even(10, 2)
    layer.weight = DividedTensor(whole[:5].clone(), 0, pieces, True)
    assert dict(layer.named_parameters()).keys() == {"weight"}
    assert tuple(layer.weight.shape) == (10, 7)
    assert tensor_bytes(layer) == whole.nbytes // 2
    assert "axis 0 in 5|5" in repr(layer.weight)


def test_outside_of_a_forward_nothing_is_exchanged():
    weight = divided(torch.randn(4, 4), 0, 0, 2)
    with pytest.raises(RuntimeError, match="outside of a stage's forward"):
        weight.sum()
