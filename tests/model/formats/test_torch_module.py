from __future__ import annotations

import io
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.runtime.load_model import load, resident_bytes
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.methods import MissingMethodError
from dask_infer.model.store.blob_store import PendingBlob
from dask_infer.spec import ModelSpec


def spec_of(module: nn.Module, key: str = "k", **fields: object) -> ModelSpec:
    return ModelSpec(key, "net", "module", blob=PendingBlob(module).write(), **fields)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)
        self.drop = nn.Dropout(0.9)
        self.register_buffer("shift", torch.ones(4))
        self.register_buffer("steps", torch.tensor(7))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.drop(self.body(x)) * scale + self.shift

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self(x)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


def where(model: LoadedModel) -> list[str]:
    """Files in whose mappings the parameters lie."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = []
    for parameter in model.target.parameters():
        for line in lines:
            low, high = (int(x, 16) for x in line.split()[0].split("-"))
            if low <= parameter.data_ptr() < high:
                found += line.split()[5:6]
    return found


def test_module_runs_in_eval_without_grad() -> None:  # DI-24
    net = Net().train()
    model = load(spec_of(net))
    x = torch.randn(5, 3)
    output = model.call((x,), {})
    assert torch.equal(output, model.call((x,), {}))
    assert not output.requires_grad
    assert torch.allclose(output, net.eval()(x))
    assert net.body.weight.requires_grad
    assert (model.interface, model.floating) == ("tensor", torch.float32)
    assert model.device == torch.device("cpu")


def test_call_takes_keywords_and_methods() -> None:
    model = load(spec_of(Net()))
    x = torch.randn(5, 3)
    once = model.call((), {"x": x, "scale": 1.0})
    assert torch.equal(model.call((x,), {}, "twice"), 2 * once)
    assert model.accepts == {"x", "scale"}


def test_missing_method_is_named_before_the_first_batch() -> None:  # DM-01
    with pytest.raises(MissingMethodError, match="Net has no method generate"):
        load(spec_of(Net())).function("generate")


def test_bytes_count_shared_tensors_once() -> None:
    model = load(spec_of(Tied()))
    assert model.nbytes == 50 * 8 * 4
    assert model.target.head.weight is model.target.embed.weight


def test_weights_are_mapped_from_one_file() -> None:
    big = nn.Linear(300, 300)
    first, second = load(spec_of(big)), load(spec_of(big))
    assert len(where(first)) == 2
    assert where(first) == where(second)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_dtype_converts_parameters_and_buffers(dtype: str) -> None:
    model = load(spec_of(Net(), key=f"net {dtype}"), dtype=dtype)
    assert model.floating == getattr(torch, dtype)
    assert model.target.shift.dtype == model.floating
    assert model.target.steps.dtype == torch.int64
    x = torch.randn(5, 3, dtype=model.floating)
    assert model.call((x,), {}).dtype == model.floating


def test_converted_weights_are_mapped_too_and_stay_tied() -> None:
    model = load(spec_of(Tied(), key="tied"), dtype="bfloat16")
    assert len(set(where(model))) == 1
    assert model.target.head.weight is model.target.embed.weight
    assert model.nbytes == 50 * 8 * 2


def test_unknown_dtype_lists_the_known_ones() -> None:
    with pytest.raises(ModelLoadError, match='pass one of "float32"'):
        load(spec_of(Net()), dtype="int4")


def test_projected_bytes_follow_the_dtype() -> None:
    spec = ModelSpec("k", "net", "module", nbytes=400)
    assert resident_bytes(spec) == 400
    assert resident_bytes(spec, "bfloat16") == 200
    assert resident_bytes(spec, "float64") == 800


def test_model_saved_from_a_gpu_loads_on_the_cpu(tmp_path: Path) -> None:  # DI-15
    path = tmp_path / "gpu.pt"
    save_as_if_from_gpu(nn.Linear(3, 2), path)
    spec = ModelSpec("k", "gpu", "torchscript", path=str(path), trust=True)
    assert load(spec).call((torch.ones(1, 3),), {}).shape == (1, 2)


def save_as_if_from_gpu(module: nn.Module, path: Path) -> None:
    """Write a checkpoint whose storages claim to lie on the first CUDA device."""
    buffer = io.BytesIO()
    torch.save(module, buffer, _use_new_zipfile_serialization=False)
    names = (b"cpu", b"cuda:0")
    cpu, cuda = (b"X" + len(name).to_bytes(4, "little") + name for name in names)
    assert cpu in buffer.getvalue()
    path.write_bytes(buffer.getvalue().replace(cpu, cuda))


def test_compiled_module_gives_the_same() -> None:  # DI-23
    net = Net()
    options = (("backend", "eager"), ("dynamic", True))
    model = load(spec_of(net, compile=options))
    x = torch.randn(5, 3)
    assert torch.allclose(model.call((x,), {}), net.eval()(x))
    model.close()


def failing_backend(graph: object, inputs: object) -> Callable[..., object]:
    raise RuntimeError("no compiler here")


@pytest.mark.parametrize("backend", ["nowhere", failing_backend])
def test_failed_compilation_runs_eagerly_with_one_warning(backend: object) -> None:
    spec = spec_of(Net(), key=f"compile {backend}", compile=(("backend", backend),))
    x = torch.randn(5, 3)
    with pytest.warns(UserWarning, match=r"net: torch.compile failed") as caught:
        model = load(spec)
        outputs = [model.call((x,), {}) for _ in range(3)]
        load(spec).call((x,), {})
    assert len([w for w in caught if "torch.compile" in str(w.message)]) == 1
    assert outputs[0].shape == (5, 4)


def test_refused_batch_does_not_stop_a_compiled_module() -> None:
    options = (("backend", "eager"),)
    model = load(spec_of(Net(), key="refuses", compile=options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model.call((torch.randn(5, 7),), {})
        assert model.call((torch.randn(5, 3),), {}).shape == (5, 4)


@pytest.mark.gpu
def test_module_lives_on_the_accelerator_until_closed() -> None:
    x = torch.randn(2, 1000, device="cuda", dtype=torch.bfloat16)
    nn.functional.linear(x, x, x[:, 0])  # the workspaces of cuBLAS stay
    before = torch.cuda.memory_allocated()
    model = load(spec_of(nn.Linear(1000, 1000)), device="cuda", dtype="bfloat16")
    assert model.call((x,), {}).device.type == model.device.type == "cuda"
    assert torch.cuda.memory_allocated() - before >= model.nbytes
    model.close()
    assert torch.cuda.memory_allocated() - before < model.nbytes


def test_close_lets_go_of_the_module() -> None:
    model = load(spec_of(Net()))
    model.close()
    assert model.target is None


def test_module_whose_code_is_missing_names_it_and_the_remedy() -> None:
    blob = PendingBlob(Net()).write()
    data = pickle.dumps(Net()).replace(
        Net.__module__.encode(), b"x" * len(Net.__module__)
    )
    spec = ModelSpec("k", "net", "callable", blob=type(blob)("other", data))
    with pytest.raises(ModelLoadError, match=r"install x+ on the workers or send it"):
        load(spec)


def test_out_of_memory_is_not_disguised(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(blob: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dask_infer.model.formats.format.read_blob", exhausted)
    with pytest.raises(MemoryError):
        load(ModelSpec("k", "net", "module", blob=PendingBlob(Net()).write()))


def test_loads_of_several_threads_do_not_disturb_each_other() -> None:  # DI-02
    nets = [Net() for _ in range(4)]
    specs = [spec_of(net, key=f"thread {i}") for i, net in enumerate(nets)]
    models: dict[int, LoadedModel] = {}

    def run(i: int) -> None:
        models[i] = load(specs[i], dtype="float64" if i % 2 else None)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [models[i].floating for i in range(4)] == [torch.float32, torch.float64] * 2
    assert torch.get_default_dtype() == torch.float32


class _Several(nn.Linear):
    def embed(self, ids, attention_mask=None):
        return ids

    def generate(self, **kwargs):
        return kwargs

    def anything(self, **kwargs):
        return kwargs


def test_a_method_takes_keywords_of_its_own():
    model = load(spec_of(_Several(2, 1)))
    assert model.token_rules(None).accepts == {"input"}
    assert model.token_rules("generate").accepts == {"input"}
    assert model.token_rules("embed").accepts == {"ids", "attention_mask"}
    assert model.token_rules("anything").accepts is None
    assert model.token_rules("embed") is model.token_rules("embed")
