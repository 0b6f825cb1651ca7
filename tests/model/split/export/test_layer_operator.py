"""Layers as calls of one operator: every trap by which stages could differ."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dask_infer.errors import InputError, OutputError
from dask_infer.model.split import CannotSplit, load_stage
from dask_infer.model.split.export import layer_operator as module
from tests.model.split.models import (
    FLOATS,
    TOKENS,
    Layer,
    assert_exact,
    run,
    same,
    split_module,
    whole,
)


class Stack(nn.Module):
    """Layers one after the other; what is around them is for those that derive."""

    def __init__(self, make: Any, count: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make() for _ in range(count))

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8)


class AddsInPlace(Dense):
    def forward(self, x: Any) -> Any:
        x += 1.0
        return self.dense(x)


class AddsToAView(Dense):
    def forward(self, x: Any) -> Any:
        x[:, :2].mul_(3.0)
        return self.dense(x) + x


class ReturnsItsArgument(Dense):
    def forward(self, x: Any) -> Any:
        return x, self.dense(x)


class Numpy(Dense):
    def forward(self, x: Any) -> Any:
        made = torch.from_numpy(np.tanh(x.detach().cpu().numpy()))
        return self.dense(made) * (2.0 if made.sum() > 0 else 3.0)


class Drops(Dense):
    def forward(self, x: Any) -> Any:
        return self.dense(x)[x.sum(1) > -torch.inf]


@pytest.mark.parametrize("make", [AddsInPlace, AddsToAView, Numpy, Drops])
def test_code_inside_layers_runs_as_it_is(make):
    spec, chain = split_module(Stack(make), FLOATS)
    assert len(chain.blocks) == 3
    for rows in (1, 4):
        x = torch.randn(rows, 8)
        expected = whole(spec, (x.clone(),), {})
        for cuts in ((1,), (1, 2)):
            same(run(spec, chain, cuts, (x.clone(),), {}), expected)


def test_a_change_in_place_reaches_views_and_leaves_the_carry():
    class Views(Stack):
        def forward(self, x):
            x = x * 2
            view = x[:, 2:]
            y = self.layers[0](x)
            return self.layers[1](y + view.sum(1, keepdim=True)) + x

    spec, chain = split_module(Views(AddsInPlace, 2), FLOATS)
    x = torch.randn(3, 8)
    assert_exact(spec, chain, x)
    stage = load_stage(spec, chain, 0, 1)
    carry = chain.bind((x,), {})
    before = {name: value.clone() for name, value in carry.items()}
    stage.call((carry,), {})
    same(carry, before)  # it may be sent again


def test_arguments_that_are_returned_stay_what_they_are():
    class Both(Stack):
        def forward(self, x):
            x = x + 1
            for layer in self.layers:
                same, made = layer(x)
                same.add_(1.0)
                x = made + x
            return x

    spec, chain = split_module(Both(ReturnsItsArgument), FLOATS)
    assert_exact(spec, chain, torch.randn(3, 8))


def test_a_view_may_be_changed_later():
    class Halves(Dense):
        def forward(self, x):
            return x[:, :4], self.dense(x)

    class Changes(Stack):
        def forward(self, x):
            x = x * 2
            for layer in self.layers:
                view, made = layer(x)
                view.add_(1.0)
                x = made + x
            return x

    class Reads(Stack):
        def forward(self, x):
            for layer in self.layers:
                view, made = layer(x)
                x = made + view.sum(1, keepdim=True)
            return x

    for kind in (Reads, Changes):
        assert_exact(*split_module(kind(Halves), FLOATS), torch.randn(3, 8))


def test_what_may_be_a_view_for_some_values_is_not_changed_later():
    class Sometimes(Dense):
        def forward(self, x):
            return self.dense(x) if x.max() > 100 else x[:]

    class Changes(Stack):
        def forward(self, x):
            return super().forward(x).add_(1.0) + x

    with pytest.raises(CannotSplit, match="in place, of which a layer may return a"):
        split_module(Changes(Sometimes), FLOATS)


def test_sizes_and_flags_as_arguments_and_results():
    class Sized(Dense):
        def forward(self, x, rows, wide=None, *, scale=1.0):
            made = self.dense(x) * rows * scale
            return {"x": -made if wide else made, "rows": len(x), "name": None}

    class Sizes(Stack):
        def forward(self, x):
            for n, layer in enumerate(self.layers):
                wide = x.abs().max().item() > 1
                found = layer(x, x.shape[0], wide, scale=n + 0.5)
                x = found["x"] / found["rows"]
            return x, found["rows"]

    spec, chain = split_module(Sizes(Sized), FLOATS)
    for rows in (1, 3, 6):
        for scale in (0.01, 10.0):
            assert_exact(spec, chain, scale * torch.randn(rows, 8))


@dataclasses.dataclass
class Features:
    x: Any
    more: Any = None


def test_dataclasses_tuples_and_none():
    class Nested(Dense):
        def forward(self, features):
            x = self.dense(features.x)
            return Features(x, (x * 2, [x, None]))

    class Wraps(Stack):
        def forward(self, x):
            for layer in self.layers:
                found = layer(Features(x))
                x = found.x + found.more[1][0] + found.more[0]
            return Features(x, found.more)

    spec, chain = split_module(Wraps(Nested), FLOATS)
    same(
        vars(run(spec, chain, (1,), (torch.ones(2, 8),), {})),
        vars(whole(spec, (torch.ones(2, 8),), {})),
    )


def test_a_layer_that_is_called_twice_has_two_sites():
    class Twice(Stack):
        def forward(self, x):
            for layer in (*self.layers, *self.layers):
                x = layer(x, 2.0) if layer is self.layers[0] else layer(x)
            return x

    class Scaled(Layer):
        def forward(self, x, scale=1.0):
            return super().forward(x) * scale

    assert_exact(*split_module(Twice(Scaled), FLOATS), torch.randn(3, 8))


def test_hooks_run_once():
    seen = []

    def hook(layer, given, made):
        seen.append(len(made))
        return made * 2

    stack = Stack(Layer)
    stack.layers[1].register_forward_hook(hook)
    stack.register_forward_hook(lambda layer, given, made: (made, made + 1))
    spec, chain = split_module(stack, FLOATS)
    assert not seen  # the caller's list is not the copy's
    assert_exact(spec, chain, torch.randn(3, 8))


def test_code_around_layers_that_reads_their_weights():  # PP-3
    class Reads(Stack):
        def forward(self, x):
            for layer in self.layers:
                x = layer(x) @ self.layers[0].dense.weight
            return x

    spec, chain = split_module(Reads(Layer), FLOATS)
    assert all("layers.0.dense.weight" in block.tensors for block in chain.blocks)
    assert_exact(spec, chain, torch.randn(3, 8))


class Appends(Dense):
    def forward(self, x: Any, seen: Any) -> Any:
        seen.append(x)
        return self.dense(x)


def test_a_layer_that_changes_a_container_is_exported():
    class Collects(Stack):
        def forward(self, x):
            seen = []
            for layer in self.layers:
                x = layer(x, seen)
            return x + sum(seen)

    spec, chain = split_module(Collects(Appends), FLOATS)
    assert len(chain.blocks) == 3 and not chain.layers()
    assert_exact(spec, chain, torch.randn(3, 8))


def test_a_layer_called_past_its_module_is_exported():
    class Direct(Stack):
        def forward(self, x):
            return super().forward(self.layers[0].forward(x))

    assert_exact(*split_module(Direct(Layer), FLOATS), torch.randn(3, 8))


def test_hooks_that_the_model_adds_as_it_runs_are_exported():
    class Captures(Stack):
        def forward(self, x):
            seen = []
            handles = [
                layer.register_forward_hook(lambda *given: seen.append(given[-1]))
                for layer in self.layers
            ]
            x = super().forward(x)
            for handle in handles:
                handle.remove()
            return x, seen

    assert_exact(*split_module(Captures(Layer), FLOATS), torch.randn(3, 8))


SEEN: dict[str, Any] = {}


class Keeps(Dense):
    """Leaves what it computes in its file."""

    def forward(self, x: Any) -> Any:
        SEEN["last"] = self.dense(x)
        return SEEN["last"]


class ReadsWhatALayerLeft(Stack):
    def __init__(self) -> None:
        super().__init__(Keeps)

    def forward(self, x: Any) -> Any:
        first = self.layers[0](x)
        left = SEEN["last"].mean(1, keepdim=True)[: x.shape[0]]
        return self.layers[2](self.layers[1](first)) + left


class LeavesANote(Stack):
    """A hook writes what a hook of another layer reads."""

    def __init__(self) -> None:
        super().__init__(Layer)
        note: dict[str, Any] = {}

        def write(part: Any, given: Any) -> None:
            note["mean"] = given[0].mean(1, keepdim=True)

        def read(part: Any, given: Any, made: Any) -> Any:
            return made + note["mean"][: made.shape[0]]

        self.layers[0].register_forward_pre_hook(write)
        self.layers[2].register_forward_hook(read)


class SetsScales(Stack):
    """Sets what layers read before it calls them."""

    class Scaled(Dense):
        def __init__(self, shared: dict[str, float]) -> None:
            super().__init__()
            self.shared = shared

        def forward(self, x: Any) -> Any:
            return self.dense(x) * self.shared["scale"]

    def __init__(self) -> None:
        self.shared = {"scale": 1.0}
        shared = self.shared
        super().__init__(lambda: self.Scaled(shared))
        self.shared = shared

    def forward(self, x: Any) -> Any:
        for number, layer in enumerate(self.layers):
            self.shared["scale"] = number + 1.0
            x = layer(x)
        return x


@pytest.mark.parametrize("make", [ReadsWhatALayerLeft, LeavesANote, SetsScales])
def test_what_an_earlier_call_left_is_not_what_the_next_one_reads(make):
    stack = make().eval()
    with torch.no_grad():
        stack(torch.randn(9, 8))
    assert_exact(*split_module(stack, FLOATS), torch.randn(5, 8))


def test_what_a_hook_leaves_on_the_model_is_refused():
    class Features(Stack):
        kept: Any = None

        def keep(self, part, given, made):
            self.kept = made

        def forward(self, x):
            made = super().forward(x)
            return made + self.kept.mean(1, keepdim=True)[: x.shape[0]]

    stack = Features(Layer).eval()
    stack.layers[1].register_forward_hook(stack.keep)
    with torch.no_grad():
        stack(torch.randn(9, 8))
    with pytest.raises(CannotSplit, match='it changes its "kept" as it runs'):
        split_module(stack, FLOATS)


def test_hooks_that_do_nothing_leave_a_layer_as_it_is():
    seen: list[Any] = []

    def collect(part, given, made):
        if seen:  # switched on by what is there
            seen.append(made)

    stack = Stack(Layer)
    stack.layers[1].register_forward_hook(collect)
    _, chain = split_module(stack, FLOATS)
    assert len(chain.layers()) == 3


def test_what_a_layer_sets_up_in_its_first_call_is_no_state():
    class SetsUp(Dense):
        ready = False

        def forward(self, x):
            self.ready = True
            return self.dense(x)

    class Counts(Dense):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return self.dense(x)

    class ChangesABuffer(Dense):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(8))

        def forward(self, x):
            self.total.add_(x.sum(0))
            return self.dense(x)

    assert_exact(*split_module(Stack(SetsUp), FLOATS), torch.randn(3, 8))
    with pytest.raises(CannotSplit, match=r'"layers.0" changes its "calls"'):
        split_module(Stack(Counts), FLOATS)
    with pytest.raises(CannotSplit, match=r'"layers.0" changes its "total"'):
        split_module(Stack(ChangesABuffer), FLOATS)


def test_a_layer_may_return_its_argument_for_some_rows_alone():
    class Sometimes(Dense):
        def forward(self, x):
            return self.dense(x) if x.max() > 100 else x

    spec, chain = split_module(Stack(Sometimes), FLOATS)
    for scale in (0.1, 1000.0):
        assert_exact(spec, chain, scale * torch.ones(3, 8))


def test_layers_that_are_alike_are_learned_once(monkeypatch):
    learned = []
    learn = module.learn
    monkeypatch.setattr(
        module, "learn", lambda path, *rest: learned.append(path) or learn(path, *rest)
    )
    split_module(Stack(Layer, 20), FLOATS)
    assert learned == ["layers.0"]


def test_a_loop_over_tokens_inside_layers():  # PP-8
    class Scans(Dense):
        def forward(self, x):
            state, states = x[:, 0], []
            for place in range(x.shape[1]):
                state = state * 0.5 + self.dense(x[:, place])
                states.append(state)
            return torch.stack(states, 1)

    class Embeds(Stack):
        def __init__(self):
            super().__init__(Scans)
            self.embed = nn.Embedding(20, 8)

        def forward(self, ids):
            x = super().forward(self.embed(ids))
            return x + torch.arange(x.shape[1])[None, :, None]

    spec, chain = split_module(Embeds(), TOKENS)
    for shape in ((1, 1), (2, 17), (3, 40)):
        assert_exact(spec, chain, torch.randint(20, shape))


def test_bfloat16():  # PP-11
    spec, chain = split_module(Stack(Numpy2), FLOATS, dtype="bfloat16")
    assert chain.floating is torch.bfloat16
    assert_exact(spec, chain, torch.randn(3, 8).bfloat16(), dtype="bfloat16")


class Numpy2(Dense):
    def forward(self, x: Any) -> Any:
        return self.dense(x) * (2.0 if x.sum().item() > 0 else 3.0)


def test_a_named_cut_inside_a_layer_opens_it():  # PP-4
    spec, chain = split_module(Stack(Layer), FLOATS, cuts=("layers.1.norm",))
    assert set(chain.layers()) >= {"layers.0", "layers.2", "layers.1.dense"}
    assert_exact(spec, chain, torch.randn(3, 8))
    with pytest.raises(CannotSplit, match=r"if made.sum\(\) > 0|item|numpy"):
        split_module(Stack(Numpy), FLOATS, cuts=("layers.1.dense",))


def test_two_threads_split_at_once():
    def both(_: int) -> Any:
        return split_module(Stack(Layer, 6), FLOATS)

    with ThreadPoolExecutor(2) as pool:
        for spec, chain in pool.map(both, range(4)):
            assert_exact(spec, chain, torch.randn(2, 8))
    assert not module._sites  # nothing is left of an export


class Middle(nn.Module):
    """Text classifiers of three layers; those that derive say what the second does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 8)
        self.layers = nn.ModuleList([Layer(8), self.Layer(), Layer(8)])

    def forward(self, ids: Any) -> Any:
        hidden = self.layers[0](self.embed(ids))
        return self.layers[2](self.around(hidden, ids))

    def around(self, x: Any, ids: Any) -> Any:
        x = self.layers[1](x)
        return x.sum(1) / x.shape[1]


class CropsTo64(Middle):
    class Layer(Dense):
        def forward(self, x: Any) -> Any:
            return self.dense(x[:, :64])


class NoneUpTo32(Middle):
    class Layer(Dense):
        def forward(self, x: Any) -> Any:
            return self.dense(x), (x if x.shape[1] > 32 else None)

    def around(self, x: Any, ids: Any) -> Any:
        first, second = self.layers[1](x)
        return first.mean(1) if second is None else first.mean(1) + second.mean(1)


class AllOfTheMask(Middle):
    class Layer(Dense):
        def forward(self, x: Any, mask: Any) -> Any:
            return self.dense(x if bool(mask.all()) else x[mask][None])

    def around(self, x: Any, ids: Any) -> Any:
        x = self.layers[1](x, ids > 10)
        return (x.sum((0, 1)) / x.shape[1]).expand(ids.shape[0], 8)


@pytest.mark.parametrize("make", [CropsTo64, NoneUpTo32, AllOfTheMask])
def test_a_layer_that_does_otherwise_at_other_sizes_is_refused_there(make):
    """The code around it had been exported for what it did at the sizes of the runs."""
    spec, chain = split_module(make(), TOKENS)
    cuts = tuple(range(1, len(chain.blocks)))
    small, large = (torch.arange(n).reshape(2, -1) % 100 for n in (24, 256))
    assert cuts
    if make is not AllOfTheMask:
        assert_exact(spec, chain, small)
    with pytest.raises(
        OutputError, match=r'"layers\.1", called with .*parallel="data"'
    ):
        run(spec, chain, cuts, (large,), {})


class GivenTwice(Middle):
    class Layer(Dense):
        def forward(self, x: Any, other: Any) -> Any:
            x.add_(1)
            return self.dense(x) + other

    def around(self, x: Any, ids: Any) -> Any:
        return self.layers[1](x, x[:, :1]).mean(1)


class Scaled(Middle):
    class Layer(Dense):
        def forward(self, x: Any, scale: float) -> Any:
            return self.dense(x) * scale

    def around(self, x: Any, ids: Any) -> Any:
        return self.layers[1](x, ids.shape[1] ** -0.5).mean(1)


class TwoUnknownSizes(Middle):
    class Layer(Dense):
        def forward(self, x: Any, y: Any) -> Any:
            return self.dense(y) + x.sum()

    def around(self, x: Any, ids: Any) -> Any:
        y = self.layers[1](x[ids > 10], x[ids > 20])
        return (y.sum(0) / y.shape[0]).expand(ids.shape[0], 8)


@pytest.mark.parametrize("make", [GivenTwice, Scaled, TwoUnknownSizes])
def test_arguments_that_share_memory_fractions_and_unknown_sizes(make):
    spec, chain = split_module(make(), TOKENS)
    ids = torch.arange(36).reshape(2, 18)
    assert_exact(spec, chain, ids)


class Turned(Middle):
    """Its second layer returns a view that is not contiguous."""

    class Layer(Dense):
        def forward(self, x: Any) -> Any:
            return self.dense(x).transpose(1, 2)


class Strided(Turned):
    def around(self, x: Any, ids: Any) -> Any:
        y = self.layers[1](x)
        return y.as_strided((y.shape[0], 8), (y.stride(0), y.stride(1)))


class AsksForContiguous(Turned):
    def around(self, x: Any, ids: Any) -> Any:
        y = self.layers[1](x) * 2
        return y.sum(2) if y.is_contiguous() else y.mean(2)


@pytest.mark.parametrize("make", [Strided, AsksForContiguous])
def test_code_that_asks_for_the_strides_of_a_layer_is_refused(make):
    with pytest.raises(CannotSplit, match=r"(stride|is_contiguous)\(\).*strides"):
        split_module(make(), TOKENS)


def test_strides_of_inputs_may_be_asked_for():
    class Before(Turned):
        def forward(self, ids: Any) -> Any:
            return super().forward(ids if ids.is_contiguous() else ids.contiguous())

        def around(self, x: Any, ids: Any) -> Any:
            return self.layers[1](x).reshape(x.shape[0], 8, -1).mean(2)

    assert_exact(*split_module(Before(), TOKENS), torch.arange(36).reshape(2, 18))


def test_a_sequential_may_return_any_sizes_but_no_other_structure():
    class Doubles(Dense):
        def forward(self, x: Any) -> Any:
            return self.dense(x if len(x) <= 32 else x.repeat(2, 1))

    class Pairs(Dense):
        def forward(self, x: Any) -> Any:
            return (self.dense(x), x) if len(x) > 32 else self.dense(x)

    spec, chain = split_module(nn.Sequential(Layer(), Doubles(), Layer()), FLOATS)
    assert_exact(spec, chain, torch.randn(40, 8))
    spec, chain = split_module(nn.Sequential(Layer(), Pairs(), First()), FLOATS)
    assert_exact(spec, chain, torch.randn(4, 8))
    with pytest.raises(OutputError, match=r'layer "1", called with \(40, 8\)'):
        run(spec, chain, (1, 2), (torch.randn(40, 8),), {})


class First(nn.Module):
    """Reads the first of several, or the only one."""

    def forward(self, x: Any) -> Any:
        return x[0] * 2 if isinstance(x, tuple) else x * 3


def test_a_branch_that_leaves_no_step_is_code_of_the_models_own():
    """Code around layers without any operator looked like none at all."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Layer(), NoneUpTo32Rows(), Layer()])

        def forward(self, x: Any) -> Any:
            x, more = self.layers[1](self.layers[0](x))
            return self.layers[2](x if more is None else more)

    spec, chain = split_module(Branches(), FLOATS)
    assert_exact(spec, chain, torch.randn(16, 8))
    with pytest.raises(OutputError, match=r'"layers\.1", called with \(40, 8\)'):
        run(spec, chain, (1, 2), (torch.randn(40, 8),), {})


class NoneUpTo32Rows(Dense):
    def forward(self, x: Any) -> Any:
        return self.dense(x), (x if len(x) > 32 else None)


@dataclasses.dataclass
class Context:
    x: Any


class ContextDict(dict[str, Any]):
    """A dictionary that may have attributes."""


@pytest.mark.parametrize("kind", [Context, ContextDict])
def test_attributes_of_containers_that_layers_are_given_are_read_and_written(kind):
    class Notes(Dense):
        def forward(self, given: Any) -> Any:
            x = given.x if kind is Context else given["x"]
            made = self.dense(x) * getattr(given, "factor", 1.0)
            given.factor += 1.0
            return made

    class Gives(Stack):
        def forward(self, x: Any) -> Any:
            given = kind(x=x)
            given.factor = 3.0
            return sum(layer(given) for layer in self.layers)

    assert_exact(*split_module(Gives(Notes), FLOATS), torch.randn(3, 8))


@pytest.mark.parametrize(
    "asks",
    [
        lambda rows: rows**0.5 > 5,
        lambda rows: round(rows / 2) > 10,
        lambda rows: math.ceil(rows / 3) > 10,
        lambda rows: abs(rows - 7) > 20,
        lambda rows: int(rows * 0.1) > 3,
    ],
)
@pytest.mark.parametrize("is_layer", [False, True])
def test_what_code_computes_of_sizes_is_asked_for_each_batch(asks, is_layer):
    class Views(Dense):
        def forward(self, x: Any) -> Any:
            return x[:, :4], self.dense(x) * (2.0 if asks(x.shape[0]) else 1.0)

    class Adds(Stack):
        def forward(self, x: Any) -> Any:
            for layer in self.layers:
                if is_layer:
                    view, x = layer(x)
                    x = x + view.sum(1, keepdim=True)
                else:
                    x = layer.dense(x) * (2.0 if asks(x.shape[0]) else 1.0)
            return x

    spec, chain = split_module(Adds(Views), FLOATS)
    assert_exact(spec, chain, torch.randn(4, 8))
    with pytest.raises(InputError, match="was split along what its code does"):
        chain.bind((torch.randn(40, 8),), {})
