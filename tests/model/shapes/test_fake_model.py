"""Models of every kind, looked at without their weights."""

import functools
import json

import pytest
import torch
from torch import nn

from dask_infer.errors import ModelLoadError
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

TOKENS = Example("int64", (None,))
TEXT = {"input_ids": TOKENS, "attention_mask": TOKENS}
IMAGE = Example("floating", (3, 32, 32))


def spec(kind, path=None, **kwargs):
    return ModelSpec(key="0", name="m", kind=kind, path=str(path), **kwargs)


# Hugging Face

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SMALL_TEXT = {**SMALL, "vocab_size": 100, "pad_token_id": 0}
SMALL_IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 64}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
LLAMA = {**SMALL_TEXT, "num_key_value_heads": 2}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}

FAMILIES = [
    ("BertForSequenceClassification", SMALL_TEXT, {"logits": ("n", 2)}),
    (
        "DistilBertForSequenceClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 100},
        {"logits": ("n", 2)},
    ),
    ("GPT2LMHeadModel", GPT2, {"logits": ("n", "t", 100)}),
    (
        "T5EncoderModel",
        {**T5, "vocab_size": 100},
        {"last_hidden_state": ("n", "t", 32)},
    ),
    ("LlamaForCausalLM", LLAMA, {"logits": ("n", "t", 100)}),
    (
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 4},
        {"logits": ("n", "t", 100)},
    ),
    ("ViTForImageClassification", SMALL_IMAGE, {"logits": ("n", 2)}),
    (
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
        {"logits": ("n", 2)},
    ),
    (
        "CLIPVisionModel",
        SMALL_IMAGE,
        {"last_hidden_state": ("n", 17, 32), "pooler_output": ("n", 32)},
    ),
]


@pytest.fixture
def saved(tmp_path):
    """Writes the config of an architecture, without weights."""
    transformers = pytest.importorskip("transformers")

    def save(name, settings):
        config = getattr(transformers, name).config_class(**settings)
        config.architectures = [name]
        config.save_pretrained(tmp_path)
        return spec("huggingface", tmp_path)

    return save


@pytest.mark.parametrize(("name", "settings", "expected"), FAMILIES)
def test_huggingface_families(saved, name, settings, expected):
    is_image = "vocab_size" not in settings
    args, kwargs = ((IMAGE,), {}) if is_image else ((), TEXT)
    traced = propagate(saved(name, settings), None, args, kwargs)
    axes = {"n": traced.rows, "t": traced.tokens}
    found = {key: tuple(tensor.shape) for key, tensor in traced.output.items()}
    assert found == {
        key: tuple(axes.get(size, size) for size in shape)
        for key, shape in expected.items()
    }
    assert {tensor.dtype for tensor in traced.output.values()} == {torch.float32}


def test_config_has_the_dtype(saved):
    name, settings, _ = FAMILIES[0]
    traced = propagate(saved(name, {**settings, "dtype": "bfloat16"}), None, (), TEXT)
    assert traced.floating == "bfloat16"
    assert traced.output["logits"].dtype == torch.bfloat16


def test_wrong_image_size_is_refused(saved):
    name, settings, _ = FAMILIES[6]
    small = Example("floating", (3, 16, 16))
    with pytest.raises(ShapeMismatch, match=r"16\*16.*32\*32"):
        propagate(saved(name, settings), None, (small,), {})


def test_unknown_architecture_is_named(saved, tmp_path):
    found = saved(*FAMILIES[0][:2])
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["SecretModel"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=r"SecretModel"):
        propagate(found, None, (), TEXT)


# Programs


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.dense = nn.Embedding(5, 2), nn.Linear(4, 2)

    def forward(self, ids, *, dense):
        return {"sum": self.embed(ids) + self.dense(dense), "dense": self.dense(dense)}


@pytest.fixture
def exported(tmp_path):
    def export(*args, dynamic=True, **kwargs):
        rows = torch.export.Dim("rows")
        shapes = {"ids": {0: rows}, "dense": {0: rows}} if dynamic else None
        ids, dense = torch.zeros(4, dtype=torch.int64), torch.rand(4, 4)
        program = torch.export.export(
            Two().eval(), (ids,), {"dense": dense}, dynamic_shapes=shapes
        )
        torch.export.save(program, tmp_path / "m.pt2")
        return spec("exported", tmp_path / "m.pt2")

    return export


IDS, DENSE = Example("int64"), Example("floating", (4,))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((IDS,), {"dense": DENSE}),
        ((IDS, DENSE), {}),
        ((), {"ids": IDS, "dense": DENSE}),
    ],
    ids=["exported so", "places", "names"],
)
def test_exported_program(exported, args, kwargs):
    traced = propagate(exported(), None, args, kwargs)
    shapes = {key: tuple(tensor.shape) for key, tensor in traced.output.items()}
    assert shapes == {"sum": (traced.rows, 2), "dense": (traced.rows, 2)}


def test_exported_program_refuses_by_numbers(exported):
    wide = Example("floating", (5,))
    with pytest.raises(ShapeMismatch, match=r"equal to 4, but got 5"):
        propagate(exported(), None, (IDS,), {"dense": wide})
    with pytest.raises(ArityMismatch, match=r"missing a required argument: 'dense'"):
        propagate(exported(), None, (IDS,), {})


def test_program_of_a_fixed_batch_asks_for_a_dynamic_one(exported):
    with pytest.raises(CannotTrace, match=r"exactly 4 rows.*dynamic") as caught:
        propagate(exported(dynamic=False), None, (IDS,), {"dense": DENSE})
    assert type(caught.value) is CannotTrace


def test_a_program_of_the_caller_is_untouched():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(2))

        def forward(self, x):
            return x + self.calls.add_(1.0)

    shapes = {"x": {0: torch.export.Dim.DYNAMIC}}
    exported = torch.export.export(
        Counter(), (torch.zeros(3, 2),), dynamic_shapes=shapes
    )
    module = exported.module()
    traced = propagate(spec("module"), module, (Example("floating", (2,)),), {})
    assert traced.output.shape == (traced.rows, 2)
    assert module.calls.tolist() == [0, 0]


@pytest.fixture
def scripted(tmp_path):
    torch.jit.script(nn.Linear(4, 2)).save(tmp_path / "m.pt")
    return tmp_path / "m.pt"


def test_torchscript_needs_trust(scripted):
    traced = propagate(spec("torchscript", scripted, trust=True), None, (DENSE,), {})
    assert traced.output.shape == (traced.rows, 2)
    with pytest.raises(ModelLoadError, match=r"trust=True"):
        propagate(spec("torchscript", scripted), None, (DENSE,), {})


def test_pickled_module(tmp_path):
    torch.save(nn.Linear(4, 2), tmp_path / "m.pth")
    found = spec("torchscript", tmp_path / "m.pth", trust=True)
    traced = propagate(found, None, (DENSE,), {})
    assert traced.output.shape == (traced.rows, 2)


# Factories


class Rates(nn.Linear):
    """Reads values as it is built."""

    def __init__(self, width):
        super().__init__(width, width)
        self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]


@pytest.mark.parametrize(
    "build",
    [
        functools.partial(nn.Linear, 2**19, 2**19),  # 1 TiB
        functools.partial(Rates, 2**19 // 1024),
    ],
    ids=["huge", "reads values"],
)
def test_factory_with_weights_is_built_without_them(build):
    found = spec("factory", weights="never-read.safetensors")
    width = build.args[0]
    traced = propagate(found, build, (Example("floating", (width,)),), {})
    assert traced.output.shape == (traced.rows, width)


def test_factory_that_fails_asks_for_meta():
    def build():
        raise OSError("no such checkpoint")

    with pytest.raises(CannotTrace, match=r"no such checkpoint.*meta="):
        propagate(spec("factory", weights="w"), build, (DENSE,), {})


# Closures


def test_patched_forward_runs_on_the_copy():
    module = nn.Linear(4, 2)
    forward = module.forward
    module.forward = lambda x: forward(x).sum(1)
    traced = propagate(spec("module"), module, (DENSE,), {})
    assert traced.output.shape == (traced.rows,)
