from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.footprint import mapped_share
from dask_infer.model.runtime.load_model import load
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.parameters_on_meta import parameters_on_meta
from dask_infer.model.source import ModelSource


class Net(nn.Module):
    """Tied weights, a buffer that is saved and one that is not."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 100, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.arange(width) + 1.0, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(ids)) * self.scale)


IDS = torch.arange(7)


def loaded(model: Any, **options: Any) -> LoadedModel:
    found = recognise(model)
    found.snapshot()
    return load(found.spec, **options)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def weights(net: Net, tmp_path: Path) -> Path:
    save_model(net, str(tmp_path / "model.safetensors"))
    return tmp_path / "model.safetensors"


def filled(weights: Path, factory: Any = Net, **options: Any) -> LoadedModel:
    return loaded(ModelSource.from_factory(factory, weights=str(weights)), **options)


def test_class_is_built_once_and_its_instance_called() -> None:  # RY
    class Doubler:
        def __init__(self) -> None:
            self.factor = 2

        def __call__(self, x: np.ndarray) -> np.ndarray:
            return self.factor * x

    model = loaded(Doubler)
    assert model.interface == "numpy"
    assert model.call((np.ones(2),), {}).tolist() == [2, 2]


def test_factory_of_a_module_is_called_with_tensors() -> None:
    model = loaded(ModelSource.from_factory(Net, width=8), dtype="bfloat16")
    assert (model.interface, model.floating) == ("tensor", torch.bfloat16)
    assert not model.target.training
    assert model.call((IDS,), {}).shape == (7, 100)


def test_factory_of_an_estimator_is_called_with_frames() -> None:
    class Constant:
        def predict(self, frame: Any) -> list[int]:
            return [1] * len(frame)

    model = loaded(Constant)
    assert model.interface == "frame"
    assert model.call(([0, 0],), {}) == [1, 1]
    with pytest.raises(ModelLoadError, match="leave dtype= out"):
        loaded(Constant, dtype="float16")


def test_error_in_the_users_class_is_chained() -> None:
    class Broken:
        def __init__(self) -> None:
            raise ValueError("no such file")

    with pytest.raises(ModelLoadError, match=r"Broken raised ValueError.*no such") as e:
        loaded(Broken)
    assert isinstance(e.value.__cause__, ValueError)


def test_factory_of_nothing_callable_is_refused() -> None:
    def build() -> dict[str, int]:
        return {}

    with pytest.raises(ModelLoadError, match="builds a dict, which is neither"):
        loaded(ModelSource.from_factory(build))


def test_weights_fill_what_was_built(net: Net, weights: Path) -> None:
    model = filled(weights)
    assert torch.equal(model.call((IDS,), {}), net(IDS))
    assert model.target.head.weight is model.target.embed.weight
    assert model.floating == torch.float32


def test_filled_weights_are_mapped(weights: Path) -> None:
    assert mapped_share(filled(weights).target) > 0.9


def test_filled_weights_convert_and_stay_mapped_and_tied(weights: Path) -> None:
    model = filled(weights, dtype="bfloat16")
    assert mapped_share(model.target) > 0.9
    assert model.target.head.weight is model.target.embed.weight
    assert model.target.scale.dtype == torch.bfloat16


def test_parameters_take_no_memory_while_building() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(10_000, 10_000, bias=False)

    with parameters_on_meta():
        assert all(parameter.is_meta for parameter in Wide().parameters())
    assert not nn.Linear(2, 2).weight.is_meta


def test_other_threads_build_as_usual_meanwhile() -> None:
    built: list[nn.Module] = []
    with parameters_on_meta():
        thread = threading.Thread(target=lambda: built.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
    assert not built[0].weight.is_meta


def change(weights: Path, net: Net, **tensors: torch.Tensor | None) -> None:
    state = {name: t.clone() for name, t in net.state_dict().items()}
    state.update({k.replace("__", "."): t for k, t in tensors.items()})
    save_file({name: t for name, t in state.items() if t is not None}, weights)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({"norm__bias": None}, r"lacks weights of Net: norm\.bias"),
        ({"extra": torch.ones(2)}, "holds weights that Net does not have: extra"),
        ({"norm__bias": torch.ones(3)}, r"(?s)does not fit Net.*norm\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    net: Net, weights: Path, tensors: dict[str, Any], text: str
) -> None:
    change(weights, net, **tensors)
    with pytest.raises(ModelLoadError, match=text):
        filled(weights)


def test_buffer_made_of_weights_is_named(weights: Path) -> None:
    class Derived(Net):
        def __init__(self) -> None:
            super().__init__()
            sums = self.embed.weight.detach().sum(0)
            self.register_buffer("sums", sums, persistent=False)

    with pytest.raises(ModelLoadError, match="Derived computes sums from its weights"):
        filled(weights, Derived)


def test_weights_in_several_files(net: Net, weights: Path) -> None:
    import json

    state = {name: t.clone() for name, t in net.state_dict().items()}
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, weights.parent / file)
    index = weights.parent / "model.safetensors.index.json"
    held_by = {name: file for file, held in parts.items() for name in held}
    index.write_text(json.dumps({"weight_map": held_by}))
    assert torch.equal(filled(index).call((IDS,), {}), net(IDS))


class Noted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight: Any = nn.Parameter(torch.ones(3))
        weight.before = 2
        self.weight: Any = weight
        self.weight.after = 3


def test_what_the_factory_notes_on_weights_stays(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, str(tmp_path / "noted.safetensors"))
    weight = filled(tmp_path / "noted.safetensors", Noted).target.weight
    assert (weight.before, weight.after, weight.sum()) == (2, 3, 0)


@pytest.mark.parametrize(
    "source",
    [nn.Linear, ModelSource.from_factory(nn.Linear, 2, 1, width=3)],
)
def test_a_class_that_needs_other_arguments_is_refused_at_the_call(source: Any) -> None:
    with pytest.raises(ModelLoadError, match=r"Linear cannot be built: .*from_factory"):
        recognise(source)


def test_weights_that_are_not_on_a_worker_are_said_to_be_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gone.safetensors"
    save_file(nn.Linear(2, 1).state_dict(), str(path))
    spec = recognise(ModelSource.from_factory(nn.Linear, 2, 1, weights=path)).spec
    path.unlink()
    with pytest.raises(
        ModelLoadError, match=r"there is no .*gone\.safetensors on this"
    ):
        load(spec)


def test_a_program_that_is_not_on_a_worker_is_said_to_be_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "gone.pt2"
    example = (torch.zeros(2, 2),)
    torch.export.save(torch.export.export(nn.Linear(2, 1), example), path)
    spec = recognise(path).spec
    path.unlink()
    with pytest.raises(
        ModelLoadError, match=r"there is no .*gone\.pt2 on this machine"
    ):
        load(spec)
