"""Content keys: equal content, equal key; any difference that matters, another one."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import textwrap
import threading
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import torch

import dask_infer
from dask_infer.model.identity import content_code, pickling
from dask_infer.model.identity.content_key import content_key


def notebook(source, **names):
    """Run a cell as a notebook would, and return its names."""
    namespace = {"__name__": "__main__", "torch": torch, **names}
    exec(textwrap.dedent(source), namespace)
    return namespace


def sent(obj):
    """Return the object as a worker would have it."""
    return pickling.from_bytes(pickling.to_bytes(obj, pickling.dry_run(obj)))


def linear(fill=0.5, **kwargs):
    layer = torch.nn.Linear(3, 2, **kwargs)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, fill)
    return layer


class Scaled(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.layer = linear()
        self.scale = scale

    def forward(self, x):
        return self.layer(x) * self.scale


NUMBERS = np.arange(6, dtype="float32").reshape(2, 3)

#: No two of these are the same.
DIFFERENT = [
    None,
    ...,
    True,
    1,
    1.0,
    -0.0,
    0.0,
    1j,
    "1",
    b"1",
    bytearray(b"1"),
    (1,),
    [1],
    [[1]],
    {1},
    frozenset({1}),
    {1: 2},
    {1: 2, 3: 4},
    {3: 4, 1: 2},
    OrderedDict({1: 2}),
    range(3),
    slice(0, 3),
    re.compile("a"),
    re.compile("a", re.IGNORECASE),
    NUMBERS,
    NUMBERS.T,
    NUMBERS.astype("float64"),
    NUMBERS[:1],
    np.float32(1),
    np.dtype("float32"),
    np.array(["a", None], dtype=object),
    np.array(["a", "b"], dtype=object),
    np.random.default_rng(0),
    np.random.RandomState(0),
    pd.DataFrame({"a": [1]}),
    pd.DataFrame({"b": [1]}),
    pd.Series([1], name="a"),
    pd.Index([1]),
    pd.Series(["x", None]),
    pd.Series(["x"], dtype="category"),
    pd.Series(pd.Categorical(["x"], ordered=True)),
    pd.Categorical(["x"]),
    torch.zeros(2),
    torch.nn.Parameter(torch.zeros(2)),
    torch.zeros(2, dtype=torch.bfloat16),
    torch.zeros(2, dtype=torch.float8_e4m3fn),
    torch.zeros(2, device="meta"),
    torch.zeros(2).to_sparse(),
    torch.float32,
    torch.device("cpu"),
    torch.Size([2]),
    int,
    len,
    np.exp,
    torch.relu,
    functools.partial(int, "1"),
    functools.partial(int, "2"),
    "a".upper,
    lambda x: x,
    lambda x: x + 1,
    lambda x, y=1: x,
    lambda x, y=2: x,
]


def test_different_content_has_different_keys():
    keys = [content_key(obj) for obj in DIFFERENT]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[0-9a-f]{32}", key) for key in keys)


@pytest.mark.parametrize("obj", DIFFERENT, ids=lambda obj: type(obj).__name__)
def test_key_survives_a_pickle_round_trip(obj):
    assert content_key(sent(obj)) == content_key(obj)


def test_strides_do_not_matter():
    columns = np.asfortranarray(NUMBERS)
    assert content_key(columns) == content_key(NUMBERS)
    tensor = torch.from_numpy(NUMBERS.copy())
    assert content_key(tensor.T.contiguous().T) == content_key(tensor)


def test_order_of_bytes_matters():  # FACTS 11: torch.hash_tensor does not see it
    tensor = torch.arange(4.0)
    assert content_key(tensor) != content_key(tensor.flip(0))


def test_padding_of_structured_arrays_does_not_matter():
    padded = np.dtype({"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [0, 8]})
    zeros, ones = (np.full(32, fill, "u1").view(padded) for fill in (0, 255))
    ones["a"] = ones["b"] = 0
    assert content_key(zeros) == content_key(ones)


def test_cycles_end():
    cycle = [1]
    cycle.append(cycle)
    other = [1]
    other.append([1, other])
    assert content_key(cycle) == content_key(sent(cycle))
    assert content_key(cycle) != content_key(other)


# Modules


def test_module_and_its_copy_are_equal():  # FACTS 11
    assert content_key(sent(Scaled())) == content_key(Scaled())


def test_training_gradients_and_compilation_do_not_matter():
    model = Scaled()
    modules = list(model.modules())
    key = content_key(model, modules)
    assert content_key(model.eval(), modules) == key
    model(torch.zeros(1, 3)).sum().backward()
    assert content_key(model, modules) == key
    assert content_key(torch.compile(model, backend="eager"), modules) == key


def test_training_of_what_stays_as_it_is_matters():
    assert content_key(Scaled().train()) != content_key(Scaled().eval())


def change_attribute(model):
    model.scale = 2.0


def change_weight(model):
    model.layer.weight.data[0, 0] = 7


def change_attribute_of_weight(model):
    model.layer.weight.scale = 2.0


def add_attribute_named_as_torchs(model):
    model.layer.weight.persistent_scale = 2.0


def change_dtype(model):
    model.half()


def add_hook(model):
    model.register_forward_hook(lambda module, args, output: output + 1)


def add_pre_hook(model):
    model.layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def add_buffer(model):
    model.register_buffer("extra", torch.zeros(1))


def add_passing_buffer(model):
    model.register_buffer("extra", torch.zeros(1), persistent=False)


def rename_layer(model):
    model.other = model.layer
    del model.layer


def patch_forward(model):
    model.forward = lambda x: x


CHANGES = [
    change_attribute,
    change_weight,
    change_attribute_of_weight,
    add_attribute_named_as_torchs,
    change_dtype,
    add_hook,
    add_pre_hook,
    add_buffer,
    add_passing_buffer,
    rename_layer,
    patch_forward,
]


def test_every_change_of_a_module_is_another_content():  # SP-06
    keys = {content_key(Scaled())}
    for change in CHANGES:
        model = Scaled()
        change(model)
        key = content_key(model)
        assert content_key(sent(model)) == key, change
        keys.add(key)
    assert len(keys) == 1 + len(CHANGES)


def test_order_of_layers_matters():
    first, second = torch.nn.ReLU(), torch.nn.Tanh()
    forwards = torch.nn.Sequential(first, second)
    assert content_key(forwards) != content_key(torch.nn.Sequential(second, first))


def test_numbers_of_hooks_do_not_matter():
    once, twice = Scaled(), Scaled()
    for _ in range(2):
        handle = twice.register_forward_hook(doubled)
        handle.remove()
    once.handle = once.register_forward_hook(doubled)
    twice.handle = twice.register_forward_hook(doubled)
    assert content_key(once) == content_key(twice)


def doubled(module, args, output):
    return 2 * output


@pytest.mark.parametrize("bias", [True, False])
def test_tied_and_equal_weights_differ(bias):
    tied, equal, same_memory = (
        torch.nn.Sequential(linear(bias=bias), linear(bias=bias)) for _ in range(3)
    )
    tied[1].weight = tied[0].weight
    assert content_key(tied) != content_key(equal)
    assert content_key(tied) == content_key(sent(tied))
    same_memory[1].weight.data = same_memory[0].weight.data
    assert content_key(same_memory) != content_key(equal)


def test_views_of_one_memory_with_other_numbers_differ():
    numbers = torch.arange(4).to(torch.complex64) * (1 + 2j)
    keys = set()
    for view in (numbers[:], numbers.conj()):
        model = linear()
        model.register_buffer("first", numbers)
        model.register_buffer("second", view)
        keys.add(content_key(model))
        assert content_key(sent(model)) in keys
    assert len(keys) == 2


def test_traced_scripted_and_parametrized_modules_have_keys():
    for make in (
        lambda: torch.fx.symbolic_trace(torch.nn.Sequential(linear())),
        lambda: torch.nn.utils.parametrizations.weight_norm(linear()),
        lambda: torch.export.export(linear(), (torch.zeros(2, 3),)),
    ):
        assert content_key(make()) == content_key(make())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_key_of_a_script_survives_saving(tmp_path):
    torch.jit.script(torch.nn.Sequential(linear()))  # numbers classes of the process
    script = torch.jit.script(torch.nn.Sequential(linear()))
    torch.jit.save(script, tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    other = torch.jit.script(torch.nn.Sequential(linear(0.25)))
    assert content_key(loaded) == content_key(script) != content_key(other)


# Code


def test_code_of_this_package_is_known_by_its_version_in_an_editable_install():
    assert content_code.version("dask_infer.spec") == dask_infer.__version__


NET = """
class Net(torch.nn.Module):
    def forward(self, x):
        return helper(x) * FACTOR

def helper(x):
    return x + 1

FACTOR = 2
net = Net()
"""


@pytest.mark.parametrize(
    ("old", "new"), [("* FACTOR", "/ FACTOR"), ("x + 1", "x - 1"), ("= 2", "= 3")]
)
def test_redefined_class_helper_or_global_is_another_content(old, new):
    key = content_key(notebook(NET)["net"])
    assert content_key(notebook("\n\n" + NET)["net"]) == key  # lines moved
    assert content_key(notebook(NET.replace(old, new))["net"]) != key


def test_by_value_function_keeps_its_key_when_sent():
    net = notebook(NET)["net"]
    assert content_key(sent(net)) == content_key(net)


def test_closures_and_nested_functions_count():
    cell = """
    def outer(k):
        def inner(x):
            return [g(v) + k for v in x]
        return inner
    def g(v):
        return v
    """
    outer = notebook(cell)["outer"]
    changed = notebook(cell.replace("return v\n", "return -v\n"))["outer"]
    keys = {content_key(f) for f in (outer(1), outer(2), changed(1), outer, changed)}
    assert len(keys) == 5


def test_module_of_the_user_counts_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "helpers_of_mine.py"
    cell = "import helpers_of_mine as h\ndef f(x):\n    return h.g(x)\n"
    keys = []
    for body in ("x + 1", "x + 2"):
        path.write_text(f"def g(x):\n    return {body}\n")
        sys.modules.pop("helpers_of_mine", None)
        keys.append(content_key(notebook(cell)["f"]))
        path.touch()  # the time of change says nothing
        assert content_key(notebook(cell)["f"]) == keys[-1]
    sys.modules.pop("helpers_of_mine")
    assert keys[0] != keys[1]


def test_wrappers_do_not_hide_each_other():
    def f(x):
        return x

    compiled = torch.compile(f, backend="eager")

    @functools.wraps(compiled)
    def wrapper(x):
        return compiled(x) + 1

    assert content_key(compiled) == content_key(f) != content_key(wrapper)


# What has no key


def generator():
    yield 1


@pytest.mark.parametrize(
    "make",
    [threading.Lock, generator, lambda: open(os.devnull), lambda: sys._getframe()],  # noqa: SIM115
    ids=["lock", "generator", "file", "frame"],
)
def test_what_has_no_rule_makes_the_whole_key_unique(make):
    unknown = make()
    assert content_key([unknown]) != content_key([unknown])
    if hasattr(unknown, "close"):
        unknown.close()


def test_what_has_no_key_is_named_once(caplog):
    class Odd:
        def __reduce__(self):
            raise TypeError("odd state")

    for _ in range(2):
        content_key(Odd())
    assert [r.getMessage().count("odd state") for r in caplog.records] == [1]


def test_hooks_that_a_library_left_in_a_used_model_travel():
    transformers = pytest.importorskip("transformers")
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 16)
    config = transformers.BertConfig(
        num_hidden_layers=2, num_attention_heads=2, **sizes
    )
    model = transformers.BertModel(config).eval()
    ids = torch.arange(10).reshape(2, 5)
    expected = model(input_ids=ids, output_hidden_states=True)
    key, there = content_key(model), sent(model)
    result = there(input_ids=ids, output_hidden_states=True)
    assert content_key(model) == content_key(there) == key
    torch.testing.assert_close(result.hidden_states, expected.hidden_states)


# Tokenizers


def tokenizer(directory, **changes):
    transformers = pytest.importorskip("transformers")
    made = transformers.AutoTokenizer.from_pretrained(directory)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_a_tokenizer_keeps_its_key_when_it_is_used_or_sent(minilm):
    one = tokenizer(minilm)
    key = content_key(one)
    one(["a text", "b"], padding=True, truncation=True)
    assert content_key(one) == content_key(tokenizer(minilm)) == key
    assert content_key(sent(one)) == key


@pytest.mark.parametrize(
    "changes",
    [
        {"pad_token": "[UNK]"},
        {"model_input_names": ["input_ids"]},
        {"padding_side": "left"},
        {"truncation_side": "left"},
        {"model_max_length": 3},
        {"split_special_tokens": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_a_tokenizer_changes_its_key(minilm, changes):
    assert content_key(tokenizer(minilm, **changes)) != content_key(tokenizer(minilm))


def test_padding_of_a_bare_tokenizer_is_its_own(minilm):
    one, other = (tokenizer(minilm).backend_tokenizer for _ in range(2))
    other.enable_padding(pad_id=7)
    assert content_key(one) != content_key(other)


def test_another_version_of_the_package_does_not_read_the_entries_of_this(monkeypatch):
    before = content_key([1])
    monkeypatch.setattr("dask_infer.__version__", "0.0.1")
    assert content_key([1]) != before


# Other processes

SCRIPT = """
import sys
import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits
from dask_infer.model.identity import pickling
from dask_infer.model.identity.content_key import content_key

torch.manual_seed(0)

class Net(torch.nn.Module):
    names = {"a", "b", "c", "d"}
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.kinds = frozenset({"x", "y", ("z", 1)})
    @torch.no_grad()
    def forward(self, x):
        return self.layer(x) if x in {"p", "q", "r"} else np.exp(x)

x = np.random.RandomState(0).normal(size=(60, 4))
y = (x[:, 0] > 0).astype(int)
print(content_key(Net()))
print(content_key({"a", "b", "c"}))
for last in (RandomForestClassifier(3, random_state=0),
             HistGradientBoostingClassifier(max_iter=3, random_state=0)):
    steps = StandardScaler(), FunctionTransformer(lambda x: x + 1)
    # Sums of gradients depend on the number of threads.
    with threadpool_limits(1):
        model = make_pipeline(*steps, last).fit(x, y)
    print(content_key(model))
"""


def test_two_processes_agree(capsys):  # SP-06
    exec(SCRIPT, {"__name__": "__main__"})
    here = capsys.readouterr().out.split()
    there = subprocess.check_output(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert len(set(here)) == 4
    assert there.split() == here
