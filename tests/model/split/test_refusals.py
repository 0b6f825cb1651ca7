"""Models that cannot be split, and what is said of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dask_infer.errors import InputError
from dask_infer.model.refusals import ArityMismatch, Example
from dask_infer.model.split import CannotSplit, split
from dask_infer.spec import ModelSpec
from tests.model.split.models import (
    FLOATS,
    Branches,
    Counts,
    Layer,
    Skips,
    assert_exact,
    split_module,
)


def test_line_of_user_code_is_named():
    with pytest.raises(CannotSplit) as refusal:
        split_module(Branches(), FLOATS)
    message = str(refusal.value)
    assert 'model "Branches" cannot be split' in message
    assert "models.py" in message and '"if x.sum() > 0:"' in message
    assert 'use parallel="data"' in message


def test_buffer_that_changes_is_refused():
    with pytest.raises(CannotSplit, match='changes its buffer "calls"'):
        split_module(Counts(), FLOATS)


def test_unknown_cut_names_those_like_it():  # PP-4
    with pytest.raises(CannotSplit, match=r'"layer.1".*did you mean.*"layers.1"'):
        split_module(Skips(), FLOATS, cuts=("layer.1",))
    with pytest.raises(CannotSplit, match="named twice"):
        split_module(Skips(), FLOATS, cuts=("layers.1", "layers.1"))


def test_cut_before_what_never_runs_is_refused():
    module = Skips()
    module.unused = nn.Linear(8, 8)
    with pytest.raises(CannotSplit, match='never runs its module "unused"'):
        split_module(module, FLOATS, cuts=("unused",))


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("estimator", "pass the torch module"), ("factory", "weights=")],
)
def test_kinds_without_layers_say_what_to_pass(kind, remedy):
    spec = ModelSpec("0", "opaque", kind)
    with pytest.raises(CannotSplit, match=remedy):
        split(spec, Layer, [FLOATS], {})


def test_lazy_layers_are_refused():
    with pytest.raises(CannotSplit, match="call it once"):
        split(ModelSpec("0", "m", "module"), nn.LazyLinear(3), [FLOATS], {})


def test_wrong_arity_is_refused():
    with pytest.raises(ArityMismatch):
        split_module(Skips(), FLOATS, FLOATS)


def test_arguments_are_held_to_those_of_the_split():
    _, chain = split_module(Skips(), FLOATS)
    with pytest.raises(ValueError, match=r"arguments 1, it gets 1, 2"):
        chain.bind((torch.ones(1, 8), torch.ones(1, 8)), {})


def test_blocks_out_of_range_are_refused():
    _, chain = split_module(Skips(), FLOATS)
    with pytest.raises(ValueError, match="0 <= start < stop"):
        chain.stage(2, 2)


def test_data_dependent_sequences_report_no_sizes():
    class Drops(nn.Linear):
        def forward(self, x):
            return super().forward(x[x[:, 0] > 0])

    _, chain = split_module(nn.Sequential(Drops(8, 8), Drops(8, 8)), FLOATS)
    assert [block.cut_bytes_per_row for block in chain.blocks] == [0, 0]


def test_input_of_an_unknown_dtype():
    with pytest.raises(CannotSplit, match="holds text"):
        split_module(Skips(), Example("text", (8,)))


# Conditions on sizes: a graph would go down the traced branch, and be wrong


class Sized(nn.Module):
    """Takes another path where `branches` says so."""

    def __init__(self, branches):
        super().__init__()
        self.first, self.second, self.branches = nn.Linear(8, 8), Layer(), branches

    def forward(self, x):
        x = self.first(x)
        return self.second(x * 2 if self.branches(*x.shape[:2]) else x)


@pytest.mark.parametrize(
    ("branches", "shown"),
    [
        (lambda rows, tokens: rows > 7, r"x\.rows <= 7"),
        (lambda rows, tokens: rows == tokens, r"x\.rows != x\.tokens"),
        (lambda rows, tokens: tokens % 2 == 0, r"x\.tokens % 2"),
        (lambda rows, tokens: tokens < 9, r"x\.tokens >= 9"),
    ],
)
def test_branches_on_sizes_are_refused(branches, shown):
    with pytest.raises(CannotSplit, match=rf"another path.*{shown}"):
        split_module(Sized(branches), Example("floating", (None, 8)))


def test_lengths_beyond_the_positions_are_refused_batch_by_batch():
    module = Sized(lambda rows, tokens: tokens > 50)
    spec, chain = split_module(module, Example("floating", (None, 8)))
    assert_exact(spec, chain, torch.randn(3, 50, 8))
    with pytest.raises(InputError, match=r"x\.tokens <= 50.*shorter"):
        chain.bind((torch.randn(3, 51, 8),), {})


# What a stand-in for a tensor or a call would not do


def test_tensors_with_code_of_their_own_are_refused():
    class Doubled(torch.Tensor):
        pass

    module = Skips()
    module.register_buffer("odd", torch.ones(2).as_subclass(Doubled))
    with pytest.raises(CannotSplit, match=r'"odd" is a Doubled'):
        split(ModelSpec("0", "m", "module"), module, [FLOATS], {})


def test_hooks_on_the_whole_model_are_refused():
    module = Skips()
    module.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(CannotSplit, match="forward hooks"):
        split(ModelSpec("0", "m", "module"), module, [FLOATS], {})
