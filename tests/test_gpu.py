"""Predictions on a real accelerator equal those on the CPU, and leave it as it was."""

from __future__ import annotations

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import dask_infer
from dask_infer import Layout
from tests.pipeline.conftest import workers

pytestmark = pytest.mark.gpu

ROWS = 1003


class Attends(nn.Module):
    """A small encoder over padded ids, which reads their mask."""

    def __init__(self, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 128, batch_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 3)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=attention_mask == 0)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.head((hidden * mask).sum(1) / mask.sum(1))


def network(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 3))
    return nn.Sequential(*layers).eval()


@pytest.fixture
def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 60, ROWS)
    return pd.DataFrame(
        {
            "a": random.normal(size=ROWS).astype("float32"),
            "b": random.normal(size=ROWS).astype("float32"),
            "ids": [random.integers(1, 100, n).tolist() for n in lengths],
        },
        index=np.arange(ROWS) * 3,
    )


@pytest.fixture
def rows(table: pd.DataFrame) -> dd.DataFrame:
    with dask.config.set({"dataframe.convert-string": False}):
        return dd.from_pandas(table, npartitions=5)


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    dask_infer.unload()


def on_both(rows: dd.DataFrame, model: object, **options: object) -> list[pd.DataFrame]:
    """Return the same prediction from the accelerator and from the CPU."""
    return [
        rows.infer.predict(model, device=device, **options).compute()
        for device in ("auto", "cpu")
    ]


def check_near(gpu: pd.DataFrame, cpu: pd.DataFrame, atol: float = 1e-4) -> None:
    assert list(gpu.columns) == list(cpu.columns)
    pd.testing.assert_index_equal(gpu.index, cpu.index)
    assert list(gpu.dtypes) == list(cpu.dtypes)
    for name in gpu.columns.difference(["ids"]):
        one, other = gpu[name].infer.to_numpy(), cpu[name].infer.to_numpy()
        np.testing.assert_allclose(one, other, atol=atol, rtol=1e-3)


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
@pytest.mark.parametrize("batch_size", ["auto", 7, 5000])
def test_values_equal_the_cpus(rows, scheduler, batch_size):
    with dask.config.set(scheduler=scheduler):
        gpu, cpu = on_both(
            rows, network(), columns=["a", "b"], output="y", batch_size=batch_size
        )
    check_near(gpu, cpu)


@pytest.mark.parametrize("batch_tokens", ["auto", 256])
def test_ragged_ids_equal_the_cpus(rows, batch_tokens):
    torch.manual_seed(0)
    options = {"columns": {"input_ids": "ids"}, "output": "y"}
    options["batch_tokens"] = batch_tokens
    check_near(*on_both(rows, Attends().eval(), **options))


def test_auto_takes_the_accelerator_and_unload_frees_it(rows):
    # The first round also allocates the workspaces of cuBLAS, which stay.
    for width in (1999, 2000):
        before = torch.cuda.memory_allocated()
        model = network(width)
        pred = rows.infer.predict(model, columns=["a", "b"], keep=False)
        pred.compute(scheduler="sync")
        (device,) = dask_infer.replicas().device
        assert device == "cuda:0"
        assert torch.cuda.memory_allocated() > before
        dask_infer.unload(model)
    assert torch.cuda.memory_allocated() == before


def test_bfloat16_runs_there_and_comes_back_as_float32(rows):
    options = {"columns": ["a", "b"], "output": ["x", "y", "z"], "keep": False}
    half, full = (
        rows.infer.predict(network(), dtype=dtype, **options).compute()
        for dtype in ("bfloat16", None)
    )
    assert set(half.dtypes) == {np.dtype("float32")}
    np.testing.assert_allclose(half, full, atol=0.05)
    assert not half.equals(full)


class Hungry(nn.Module):
    """Takes 256 MB of the accelerator for each row of a batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taken = torch.empty(len(x), 64 * 2**20, device=x.device)
        return x.sum(1) + 0 * taken[:, 0].nan_to_num(0, 0, 0)


def test_a_batch_too_large_for_the_device_is_halved(rows, caplog):
    pred = rows.infer.predict(
        Hungry(), columns=["a", "b"], output="y", keep=["a", "b"], batch_size=1000
    )
    result = pred.compute()
    np.testing.assert_allclose(result.y, result.a + result.b, atol=1e-5)
    assert "ran out of memory on cuda:0" in caplog.text


def test_a_bad_row_on_the_device_is_the_only_one_missing(rows, table):
    def refuse(output: torch.Tensor, frame: pd.DataFrame) -> torch.Tensor:
        if (frame.index == 300).any():
            raise ValueError("row 300")
        return output

    result = rows.infer.predict(
        network(), columns=["a", "b"], output=["x", "y", "z"], postprocess=refuse,
        on_error="quarantine", meta=dict.fromkeys("xyz", "float32"),
    ).compute()  # fmt: skip
    failed = result[result.infer_error.notna()]
    assert list(failed.index) == [300]
    assert result.x.isna().sum() == 1


class Asserts(nn.Module):
    """Looks up a row of a table, whose index may be outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x)


def test_an_assertion_on_the_device_fails_the_job():
    """The process can use the device no more: it must not count as one bad row."""
    frame = dd.from_pandas(pd.DataFrame({"x": [1, 2, 99, 3]}), npartitions=1)
    with workers({}) as cluster, cluster.get_client():
        pred = frame.infer.predict(Asserts(), columns="x", on_error="null")
        with pytest.raises(Exception, match=r"device-side assert|index out of range"):
            pred.compute()


def test_postprocess_sees_tensors_of_the_device(rows):
    def on_device(output: torch.Tensor, frame: pd.DataFrame) -> torch.Tensor:
        assert output.is_cuda
        return output.softmax(1)

    result = rows.infer.predict(
        network(), columns=["a", "b"], output=["x", "y", "z"], postprocess=on_device,
        keep=False,
    ).compute()  # fmt: skip
    np.testing.assert_allclose(result.sum(axis=1), 1, atol=1e-5)


class KeepsItsOutput(nn.Module):
    """Writes every output into the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(10_000, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sum(x, 1, keepdim=True, out=self.kept[: len(x)])


def test_outputs_that_share_memory_are_copied_before_the_next_forward(rows):
    result = rows.infer.predict(
        KeepsItsOutput(), columns=["a", "b"], output="y", keep=["a", "b"], batch_size=10
    ).compute()
    np.testing.assert_allclose(result.y, result.a + result.b, atol=1e-5)


def test_estimators_and_callables_run_beside_it(rows):
    result = rows.infer.predict(
        lambda x: x.sum(1), columns=["a", "b"], output="y", meta="float32"
    ).compute()
    np.testing.assert_allclose(result.y, result.a + result.b, atol=1e-5)


def test_a_compiled_module_runs_on_the_device(rows, monkeypatch):
    # Else the compiler's pool of processes outlives the test.
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    model = network()
    options = {"columns": ["a", "b"], "output": "y"}
    compiled = rows.infer.predict(torch.compile(model), **options).compute()
    expected = rows.infer.predict(model, device="cpu", **options).compute()
    check_near(compiled, expected)


def test_stages_and_feeders_share_the_device(rows):
    torch.manual_seed(0)
    model = Attends().eval()
    options = {"columns": {"input_ids": "ids"}, "output": "y", "keep": False}
    expected = rows.infer.predict(model, device="cpu", **options).compute()
    with workers({"GPU": 1}, {"GPU": 1}, {}) as cluster, cluster.get_client():
        staged = rows.infer.predict(
            model, parallel=Layout(stages=2), resources={"GPU": 1}, **options
        ).compute()
        held = dask_infer.replicas()
        assert sorted(held.stage) == [0, 1]
        assert set(held.device) == {"cuda:0"}
        check_near(staged, expected)
        dask_infer.unload()
        remote = rows.infer.predict(model, resources={"GPU": 1}, **options).compute()
        check_near(remote, expected)


def test_generate_runs_on_the_device(rows):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=100, n_positions=80,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    gpu, cpu = on_both(
        rows.partitions[[0]], model, columns={"input_ids": "ids"}, method="generate",
        call_kwargs={"max_new_tokens": 5, "do_sample": False}, output="new",
        meta={"new": "object"}, keep=False,
    )  # fmt: skip
    same = [list(a) == list(b) for a, b in zip(gpu.new, cpu.new, strict=True)]
    assert np.mean(same) > 0.95  # a tie of two tokens may fall differently
