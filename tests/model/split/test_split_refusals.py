"""Models that cannot be split, and what is said of them."""

from __future__ import annotations

import dask.dataframe as dd
import pandas as pd
import pytest
import torch
from torch import nn

from dask_infer import Layout
from dask_infer.model.shapes.trace_errors import ArityMismatch, Example
from dask_infer.model.split import CannotSplit, split
from dask_infer.spec import ModelSpec
from tests.model.split.models import (
    FLOATS,
    Branches,
    Counts,
    Layer,
    Skips,
    split_module,
)


def test_line_of_user_code_is_named():
    with pytest.raises(CannotSplit) as refusal:
        split_module(Branches(), FLOATS)
    message = str(refusal.value)
    assert 'model "Branches" cannot be split' in message
    assert "models.py" in message and '"if x.sum() > 0:"' in message
    assert 'use parallel="data"' in message


class Suppresses(Branches):
    def forward(self, x):
        x = self.first(x)
        try:
            if x.sum() > 0:
                x = -x
        except Exception:
            pass
        return self.second(x)


def test_error_that_the_model_swallows_is_no_export():  # PP-1
    with pytest.raises(CannotSplit, match=r'"if x.sum\(\) > 0:"'):
        split_module(Suppresses(), FLOATS)


def test_buffer_that_changes_is_refused():
    with pytest.raises(CannotSplit, match='changes its "calls"'):
        split_module(Counts(), FLOATS)


def test_a_weight_among_the_outputs_is_refused():
    class ReturnsItsWeight(Skips):
        def forward(self, x):
            return super().forward(x), self.layers[0].dense.weight

    with pytest.raises(CannotSplit, match=r'returns its own "layers\.0\.dense'):
        split_module(ReturnsItsWeight(), FLOATS)


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


def test_data_dependent_sequences_report_no_sizes():
    class Drops(nn.Linear):
        def forward(self, x):
            return super().forward(x[x[:, 0] > 0])

    _, chain = split_module(nn.Sequential(Drops(8, 8), Drops(8, 8)), FLOATS)
    assert [block.cut_bytes_per_row for block in chain.blocks] == [0, 0]


def test_input_of_an_unknown_dtype():
    with pytest.raises(CannotSplit, match="holds text"):
        split_module(Skips(), Example("text", (8,)))


def test_a_call_tries_once_to_split(monkeypatch):
    tries = []

    def counted(*args, **options):
        tries.append(args)
        return split(*args, **options)

    monkeypatch.setattr("dask_infer.model.split.split", counted)
    ddf = dd.from_pandas(pd.DataFrame(0.0, [0, 1], list("abcdefgh")), npartitions=1)
    with pytest.raises(CannotSplit, match='changes its "calls"'):
        ddf.infer.predict(Counts(), parallel=Layout(stages=2))
    assert len(tries) == 1
