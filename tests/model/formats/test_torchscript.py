"""TorchScript archives and pickled modules: only with trust."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from dask_infer.errors import ModelLoadError
from dask_infer.model.runtime.load_model import load
from dask_infer.spec import ModelSpec


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x) * scale
        return {"y": y, "z": torch.nn.functional.gelu(y, approximate="tanh")}


X, SCALE = torch.randn(5, 3), torch.randn(5, 1)


def spec_of(path: Path, kind: str = "exported", trust: bool = False) -> ModelSpec:
    return ModelSpec("k", path.stem, kind, path=str(path), trust=trust)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(Net().train().body, (X,)).save(path)
    return path


def test_torchscript_needs_trust_and_runs(script: Path) -> None:
    with pytest.raises(ModelLoadError, match="trust=True"):
        load(spec_of(script, "torchscript"))
    model = load(spec_of(script, "torchscript", trust=True))
    assert model.call((X,), {}).shape == (5, 4)
    assert not model.target.training
    assert model.nbytes == 64
    assert model.accepts == {"input"}


def test_torchscript_converts(script: Path) -> None:
    model = load(spec_of(script, "torchscript", trust=True), dtype="float64")
    assert model.call((X.double(),), {}).dtype == model.floating == torch.float64


def test_pickled_module_needs_trust_and_runs(tmp_path: Path) -> None:
    net = Net().train()
    torch.save(net, tmp_path / "net.pth")
    with pytest.raises(ModelLoadError, match="trust=True"):
        load(spec_of(tmp_path / "net.pth", "torchscript"))
    model = load(spec_of(tmp_path / "net.pth", "torchscript", trust=True))
    assert torch.allclose(model.call((X, SCALE), {})["y"], net(X, SCALE)["y"])
    assert not model.target.training


def test_state_dict_points_to_a_factory(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "net.pt")
    with pytest.raises(ModelLoadError, match=r"weights only.*from_factory\(build, w"):
        load(spec_of(tmp_path / "net.pt", "torchscript", trust=True))
