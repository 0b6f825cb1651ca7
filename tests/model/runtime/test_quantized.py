"""``dtype="int8"``: linear layers rounded, outputs float32 and near the original."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import load
from dask_infer.model.runtime.quantized import QuantizedLinear


def quantized(model):
    found = recognise(model)
    found.snapshot()
    return load(found.spec, dtype="int8")


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8)).eval()


def test_a_layer_differs_by_the_rounding_only():
    torch.manual_seed(0)
    layer, x = nn.Linear(256, 32), torch.randn(100, 256)
    expected = layer(x).detach()
    error = (QuantizedLinear(layer)(x) - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.05


@pytest.mark.parametrize("shape", [(5, 16), (2, 5, 16), (0, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_shapes_are_those_of_the_layer(shape, bias):
    layer = nn.Linear(16, 3, bias=bias)
    output = QuantizedLinear(layer)(torch.zeros(shape))
    assert output.shape == layer(torch.zeros(shape)).shape
    assert output.dtype == torch.float32


def test_a_channel_of_zeros_stays_zero():
    layer = nn.Linear(4, 2)
    nn.init.zeros_(layer.weight)
    output = QuantizedLinear(layer)(torch.ones(1, 4))
    torch.testing.assert_close(output[0], layer.bias.detach())


def test_weights_take_a_quarter_and_the_users_module_is_not_changed():
    model = mlp()
    whole = sum(p.nbytes for p in model.parameters())
    replica = quantized(model)
    assert replica.nbytes < 0.35 * whole
    assert type(model[0]) is nn.Linear
    assert replica.floating == torch.float32


def test_a_half_precision_model_is_quantized_from_float32():
    replica = quantized(mlp().bfloat16())
    output = replica.call((torch.zeros(2, 64),), {})
    assert output.dtype == torch.float32


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a

    def forward(self, x):
        return self.b(self.a(x))


def test_a_layer_that_is_used_twice_stays_one():
    target = quantized(Shared()).target
    assert target.a is target.b


def test_torchs_own_encoder_uses_the_rounded_layers():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(3, 5, 32)
    with torch.inference_mode():
        expected = model(x)
    output = quantized(model).call((x,), {})
    difference = (output - expected).abs().max()
    assert 0 < difference < 0.2


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ModelLoadError, match=r'"Conv1d".*int8.*no torch\.nn\.Linear'):
        quantized(nn.Conv1d(1, 1, 1))


def test_a_script_is_refused(tmp_path):
    path = tmp_path / "net.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.script(mlp()).save(path)
    from dask_infer import ModelSource

    with pytest.raises(ModelLoadError, match="cannot be exchanged"):
        quantized(ModelSource.from_path(path, trust=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_predictions_in_other_dtypes(ddf, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1)).eval()
    with dask.config.set(scheduler="sync"):
        plain = ddf.infer.predict(model, columns=["a", "b"]).compute()
        pred = ddf.infer.predict(model, columns=["a", "b"], dtype=dtype)
        frame = pred.compute()
    assert pred["prediction"].dtype == frame["prediction"].dtype
    assert frame["prediction"].dtype == ("float16" if dtype == "float16" else "float32")
    np.testing.assert_allclose(
        frame["prediction"].astype("float32"), plain["prediction"], atol=0.05
    )


def test_vectors_of_texts_are_float32(minilm):
    frame = pd.DataFrame({"text": ["a cat", "another cat", "prime numbers"]})
    ddf = dd.from_pandas(frame, npartitions=1)
    with dask.config.set(scheduler="sync"):
        pred = ddf.infer.predict(str(minilm), columns="text", dtype="int8")
        vectors = pred.compute()["prediction"].infer.to_numpy()
    assert vectors.dtype == np.float32
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_stages_are_refused(ddf):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"int8.*stages run in floating"):
        ddf.infer.predict(model, columns=["a", "b"], dtype="int8", parallel="pipeline")


def test_embeddings_of_a_real_model(minilm):
    found = recognise(str(minilm))
    tokens = {
        "input_ids": torch.tensor([[101, 1037, 4937, 102]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.int64),
    }
    one = load(found.spec).call((), tokens)
    other = load(found.spec, dtype="int8").call((), tokens)
    assert torch.nn.functional.cosine_similarity(one, other).min() > 0.95
