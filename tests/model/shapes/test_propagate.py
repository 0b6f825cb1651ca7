"""What models return, found on fake tensors."""

import dataclasses
import io
import logging
import threading
import warnings
from collections import namedtuple

import psutil
import pytest
import torch
from torch import nn

from dask_infer.errors import InputError
from dask_infer.model.runtime.methods import MissingMethodError
from dask_infer.model.shapes.propagate import propagate
from dask_infer.model.shapes.trace_errors import (
    ArityMismatch,
    CannotTrace,
    Example,
    ShapeMismatch,
)
from dask_infer.spec import ModelSpec

#: Torch itself warns wherever scripts are made, and on importing its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def floats(*shape, **kwargs):
    return Example("floating", shape, **kwargs)


def trace(module, *args, method=None, call_kwargs=None, dtype=None, **kwargs):
    spec = ModelSpec(key="0", name=type(module).__name__, kind="module")
    return propagate(
        spec,
        module,
        args,
        kwargs,
        method=method,
        call_kwargs=call_kwargs,
        dtype=dtype,
    )


def row_shape(traced, tensor=None):
    tensor = traced.output if tensor is None else tensor
    assert tensor.shape[0] == traced.rows
    return tuple(tensor.shape[1:])


def mlp():
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)
    )


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def graph():
    return torch.fx.symbolic_trace(mlp())


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Linear(10, 3))


def script():
    return torch.jit.script(mlp())


def partly_compiled():
    return nn.Sequential(torch.compile(mlp()), nn.Softmax(1))


class Tower(nn.Module):
    """Several inputs, a buffer, tied weights."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.head.weight = self.embed.weight
        self.dense = nn.Linear(6, 4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, ids, *, dense):
        hidden = self.embed(ids) + self.dense(dense) * self.scale
        return {"hidden": hidden, "logits": self.head(hidden), "size": 4}


def takes_item(x):
    return x * x.sum().item()


def takes_numpy(x):
    return torch.from_numpy(x.numpy() * 2)


def takes_mask(x):
    return x[x > 0]


def takes_branch(x):
    return x if x.sum() > 0 else -x


def takes_unpacked(x):
    a, _b, _c, _d = x.shape
    return x[:a]


def adds_five(x):
    return x + torch.zeros(5)


def takes_fixed_rows(x):
    return x + torch.zeros(4, 9)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# What is returned


@pytest.mark.parametrize(
    ("build", "shape", "expected"),
    [
        pytest.param(mlp, (10,), (3,), id="mlp"),
        pytest.param(cnn, (3, 8, 8), (2,), id="cnn"),
        pytest.param(encoder, (9, 8), (9, 8), id="encoder"),
        pytest.param(nn.Identity, (), (), id="scalars"),
        pytest.param(graph, (10,), (3,), id="graph"),
        pytest.param(parametrized, (10,), (3,), id="parametrized"),
        pytest.param(script, (10,), (3,), id="script"),
        pytest.param(lambda: torch.compile(mlp()), (10,), (3,), id="compiled"),
        pytest.param(partly_compiled, (10,), (3,), id="partly compiled"),
    ],
)
def test_one_tensor(build, shape, expected):
    traced = trace(build(), floats(*shape))
    assert row_shape(traced) == expected
    assert (traced.output.dtype, traced.floating) == (torch.float32, "float32")
    assert not traced.dtypes


def test_lstm_returns_its_state_with_rows_on_the_second_axis():
    traced = trace(nn.LSTM(4, 6, batch_first=True), floats(9, 4))
    steps, (hidden, _cell) = traced.output
    assert row_shape(traced, steps) == (9, 6)
    assert hidden.shape == (1, traced.rows, 6)


def test_several_inputs_and_a_dict():
    traced = trace(Tower(), Example("int64"), dense=floats(6))
    assert row_shape(traced, traced.output["hidden"]) == (4,)
    assert row_shape(traced, traced.output["logits"]) == (5,)
    assert traced.output["size"] == 4


Pair = namedtuple("Pair", "mean var")


@dataclasses.dataclass
class Moments:
    mean: torch.Tensor
    var: torch.Tensor


@pytest.mark.parametrize("kind", [Pair, Moments])
def test_records_are_kept(kind):
    class Stats(nn.Module):
        def forward(self, x):
            return kind(x.mean(1), x.var(1, keepdim=True))

    traced = trace(Stats(), floats(5))
    assert isinstance(traced.output, kind)
    assert row_shape(traced, traced.output.var) == (1,)


def test_padded_axis_is_known_by_its_size():
    tokens = Example("int64", (None,))
    traced = trace(nn.Embedding(9, 4), tokens)
    assert row_shape(traced) == (traced.tokens, 4)


def test_counts_are_no_size_of_the_model():
    traced = trace(nn.Linear(37, 41), floats(37))
    assert traced.rows not in (37, 41)


def test_counts_that_turn_up_elsewhere_are_tried_again():
    class Fixed(nn.Module):
        def forward(self, x):
            return x[:, :1].expand(-1, 37)

    traced = trace(Fixed(), floats(2))
    assert traced.output.shape == (traced.rows, 37)
    assert traced.rows != 37


def test_dtype_asked_for():
    traced = trace(mlp(), floats(10), dtype="bfloat16")
    assert (traced.output.dtype, traced.floating) == (torch.bfloat16, "bfloat16")


def test_models_own_dtype():
    traced = trace(mlp().double(), floats(10))
    assert (traced.output.dtype, traced.floating) == (torch.float64, "float64")


def test_method_is_called():
    class Two(nn.Linear):
        def embed(self, x):
            return self(x).sum(1)

    assert row_shape(trace(Two(4, 2), floats(4), method="embed")) == ()


def test_call_kwargs_reach_the_model():  # BM-26
    class Scaled(nn.Module):
        def forward(self, x, twice=False):
            return torch.cat([x, x], 1) if twice else x

    assert row_shape(trace(Scaled(), floats(4), call_kwargs={"twice": True})) == (8,)


# Integers


@pytest.mark.parametrize(
    ("build", "integers"),
    [
        (lambda: nn.Embedding(9, 4), True),
        (lambda: nn.EmbeddingBag(9, 4), True),
        (lambda: nn.Linear(5, 4), False),
    ],
    ids=["embedding", "bag", "linear"],
)
def test_stacked_integers_go_in_floating_unless_refused(build, integers):
    traced = trace(build(), floats(5, other="int64"))
    assert traced.dtypes == ({0: "int64"} if integers else {})


def test_only_the_stack_that_needs_it_goes_in_as_integers():
    traced = trace(
        Tower(), floats(other="int64"), dense=Example("floating", (6,), "int64")
    )
    assert traced.dtypes == {0: "int64"}


@pytest.mark.parametrize("dtype", ["int64", "float64"])
@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.LayerNorm(5), nn.LSTM(5, 4)])
def test_dtypes_that_only_fakes_accept_are_refused(layer, dtype):
    with pytest.raises(ShapeMismatch, match=rf"argument 1 is \(n, 5\) {dtype}; cast"):
        trace(layer, Example(dtype, (5,)))


def test_floats_as_indices_are_refused():
    with pytest.raises(ShapeMismatch, match=r"refuses the dtype.*int64"):
        trace(nn.Embedding(9, 4), floats(5))


def test_optional_arguments_are_left_out_where_unknown():
    mask = Example("int64", (), optional=True)
    traced = trace(nn.Linear(5, 4), input=floats(5), mask=mask)
    assert traced.dropped == ("mask",)


# Refusals


@pytest.mark.parametrize(
    ("build", "shape", "words"),
    [
        (mlp, (7,), 'expects 10 features, columns give 7, in layer "0"'),
        (cnn, (1, 8, 8), "expects 3 channels, gets 1"),
        (cnn, (3, 9, 9), 'expects 144 features, gets 196, in layer "3"'),
        (cnn, (3,), "Expected 3D"),
        (encoder, (9, 5), "dimension of 8, but got 5"),
        (lambda: nn.LSTM(4, 6), (9, 5), "expects 4 features, columns give 5"),
        (lambda: nn.BatchNorm1d(4), (5,), "expects 4 features, columns give 5"),
        (script, (7,), "got [n, 7] X [10, 8]"),
        (lambda: Function(adds_five), (4,), "broadcast a dimension of length 5"),
    ],
)
def test_wrong_shape_is_refused_with_numbers(build, shape, words):  # SP-07..13
    with pytest.raises(ShapeMismatch) as caught:
        trace(build(), floats(*shape))
    assert words in str(caught.value)
    sizes = ", ".join(map(str, ("n", *shape)))
    assert f"argument 1 is ({sizes}{',' * (not shape)}) float32" in str(caught.value)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    ("args", "kwargs", "extra", "words"),
    [
        ((floats(10), floats(10)), {}, {}, "too many positional .* 2 arguments"),
        ((), {}, {}, "missing a required argument: 'input', columns give 0"),
        ((), {"x": floats(10)}, {}, r'columns give 1 argument \("x" by name\)'),
        ((floats(10),), {}, {"inptu": 1}, 'no "inptu" of call_kwargs; .* "input"'),
        ((), {"input": floats(10)}, {"input": 1}, '"input" from columns and call_kw'),
    ],
    ids=["many", "missing", "unknown", "call_kwargs", "twice"],
)
def test_wrong_arguments_are_refused_by_name(args, kwargs, extra, words):  # SP-07..13
    with pytest.raises(ArityMismatch, match=rf'"Linear": forward\(input\).*{words}'):
        trace(nn.Linear(10, 3), *args, **kwargs, call_kwargs=extra)


def test_arity_error_names_lists_and_tuples():
    with pytest.raises(ArityMismatch, match=r'\["a", "b"\] is one argument, \("a", "b'):
        trace(nn.Linear(2, 3), floats(), floats())


def test_missing_method_names_near_ones():  # DM-01..08
    with pytest.raises(
        MissingMethodError, match=r"Linear has no method forwrd.*forward"
    ):
        trace(nn.Linear(2, 3), floats(2), method="forwrd")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (takes_item, "depends on the values"),
        (takes_numpy, "NumPy"),
        (takes_mask, "depends on the values"),
        (takes_branch, "depends on the values"),
        (takes_unpacked, "not enough values to unpack"),
        (takes_fixed_rows, "broadcast a dimension of length 4"),
    ],
)
def test_what_cannot_be_traced_asks_for_meta(function, words):
    with pytest.raises(CannotTrace, match=f"{words}.*meta=") as caught:
        trace(Function(function), floats(9))
    assert type(caught.value) is CannotTrace
    assert words in caught.value.reason


def test_lengths_of_texts_are_never_the_columns_fault():
    class FixedLength(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1))

    with pytest.raises(CannotTrace, match=r"meta=") as caught:
        trace(FixedLength(64, 2), floats(None, 4))
    assert type(caught.value) is CannotTrace


@pytest.mark.filterwarnings("ignore:Lazy")
def test_lazy_layers_ask_for_a_call():
    module = nn.LazyLinear(3)
    with pytest.raises(CannotTrace, match=r"call it once on an example row"):
        trace(module, floats(9))


def test_generate_asks_for_meta():
    class Writer(nn.Linear):
        def generate(self, x):
            raise AssertionError

    with pytest.raises(CannotTrace, match=r"generate chooses each token.*meta="):
        trace(Writer(2, 2), floats(2), method="generate")


@pytest.mark.parametrize("kind", ["callable", "factory", "estimator"])
def test_what_is_only_known_by_calling_asks_for_meta(kind):  # DI-01
    with pytest.raises(CannotTrace, match=r"only known by calling it.*meta="):
        propagate(ModelSpec(key="0", name="f", kind=kind), None, (floats(),), {})


def test_text_is_no_tensor():
    with pytest.raises(CannotTrace, match=r"argument 1 holds string"):
        trace(nn.Linear(2, 2), Example("string"))


class Pairs(nn.Module):
    """Each row's value, all pairs of rows, and what is the same for all rows."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(10, 3)

    def forward(self, x):
        y = self.linear(x)
        return {"y": y, "pairs": y @ y.T, "all": self.linear.weight, "n": y.sum(0)}


def test_what_depends_on_the_size_of_the_batch_is_no_rows_value():  # row 11
    traced = trace(Pairs(), floats(10))
    output = {key: id(tensor) for key, tensor in traced.output.items()}
    assert traced.uneven == {output["pairs"], output["all"], output["n"]}


def test_a_size_that_is_a_count_by_chance_stays_a_size():
    class Wide(nn.Module):
        def forward(self, ids):
            return ids[:, :1].float().expand(-1, len(range(11)))

    traced = trace(Wide(), Example("int64", (None,)))
    assert row_shape(traced) == (11,) and not traced.uneven
    assert 11 not in (traced.rows, traced.tokens)


def test_only_the_second_axis_may_follow_the_tokens():
    class Scores(nn.Module):
        def forward(self, ids):
            x = ids.float()
            pairs = x[:, :, None] * x[:, None]
            return {"tokens": x, "pairs": pairs, "more": nn.functional.pad(x, (1, 0))}

    traced = trace(Scores(), Example("int64", (None,)))
    assert traced.uneven == {id(traced.output[key]) for key in ("pairs", "more")}


# What is left untouched


class Touchy(nn.Module):
    """Changes whatever it can reach when it is called."""

    def __init__(self):
        super().__init__()
        self.norm, self.calls, self.cache = nn.BatchNorm1d(3, momentum=1.0), 0, None
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.plain = torch.ones(3)

    def forward(self, x):
        self.calls += 1
        self.steps += 1
        self.plain.mul_(2)
        self.cache = x
        return self.norm(x) * torch.rand(3)


def test_the_callers_module_is_untouched():  # DI-24
    module = Touchy().train()
    seen = []
    hook = module.register_forward_hook(lambda *args: seen.append(args))
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    random = torch.get_rng_state()
    trace(module, floats(3))
    assert module.training and module.norm.training
    assert (module.calls, module.cache, seen) == (0, None, [])
    assert module.plain.tolist() == [1, 1, 1]
    assert list(module._forward_hooks) == [hook.id]
    assert all(tensor.equal(state[n]) for n, tensor in module.state_dict().items())
    assert torch.get_rng_state().equal(random)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_constants_of_a_loaded_trace_have_values():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        **sizes, intermediate_size=16, vocab_size=50, return_dict=False
    )
    model = transformers.BertForSequenceClassification(config).eval()
    traced = torch.jit.trace(model, torch.ones(2, 7, dtype=torch.int64), strict=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    found = trace(torch.jit.load(file), Example("int64", (7,)))
    assert row_shape(found, found.output[0]) == (2,)


def test_a_script_in_training_keeps_its_mode():
    module = script().train()
    trace(module, floats(10))
    assert all(part.training for part in module.modules())


def test_weights_are_not_copied():  # DI-01
    module = nn.utils.skip_init(nn.Linear, 16384, 16384)  # 1 GiB, no page of it touched
    before = psutil.Process().memory_info().rss
    assert row_shape(trace(module, floats(16384))) == (16384,)
    assert psutil.Process().memory_info().rss - before < 100 * 2**20


def test_failures_are_silent(capfd, recwarn):
    class Warns(nn.Linear):
        def forward(self, x):
            warnings.warn("loud", stacklevel=1)
            logging.getLogger("mine").warning("loud")
            return super().forward(x)

    with pytest.raises(ShapeMismatch):
        trace(Warns(10, 3), floats(7))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_threads_may_trace_at_once():
    found = []

    def run():
        found.extend(row_shape(trace(cnn(), floats(3, 8, 8))) for _ in range(5))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(2,)] * 20
