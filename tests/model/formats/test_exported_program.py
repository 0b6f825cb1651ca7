from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dask_infer.errors import InputError, ModelLoadError
from dask_infer.model.recognise import recognise
from dask_infer.model.runtime.load_model import load
from dask_infer.spec import ModelSpec


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.body(x) * scale
        return {"y": y, "z": torch.nn.functional.gelu(y, approximate="tanh")}


ROWS = {0: torch.export.Dim("rows")}
X, SCALE = torch.randn(5, 3), torch.randn(5, 1)


def export(path: Path, dynamic: bool = True, keywords: bool = False) -> Net:
    net = Net().eval()
    shapes = {"x": ROWS, "scale": ROWS} if dynamic else None
    args, kwargs = (torch.randn(2, 3), torch.randn(2, 1)), {}
    if keywords:
        args, kwargs = (), dict(zip(("x", "scale"), args, strict=True))
    program = torch.export.export(net, args, kwargs, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return net


def spec_of(path: Path, kind: str = "exported", trust: bool = False) -> ModelSpec:
    return ModelSpec("k", path.stem, kind, path=str(path), trust=trust)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("keywords", [False, True])
def test_program_takes_arguments_by_name_or_position(
    tmp_path: Path, trust: bool, keywords: bool
) -> None:
    net = export(tmp_path / "net.pt2", keywords=keywords)
    model = load(spec_of(tmp_path / "net.pt2", trust=trust))
    wanted = net(X, SCALE)["z"]
    for args, kwargs in [
        ((X, SCALE), {}),
        ((X,), {"scale": SCALE}),
        ((), {"scale": SCALE, "x": X}),
    ]:
        assert torch.allclose(model.call(args, kwargs)["z"], wanted)
    assert model.accepts == {"x", "scale"}
    assert model.floating == torch.float32
    assert not model.call((X, SCALE), {})["z"].requires_grad


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_program_runs_any_number_of_rows(tmp_path: Path, rows: int) -> None:
    export(tmp_path / "net.pt2")
    model = load(spec_of(tmp_path / "net.pt2"))
    output = model.call((torch.randn(rows, 3), torch.randn(rows, 1)), {})
    assert output["y"].shape == (rows, 4)


def test_program_of_one_batch_size_asks_for_another_export(tmp_path: Path) -> None:
    export(tmp_path / "net.pt2", dynamic=False)
    model = load(spec_of(tmp_path / "net.pt2"))
    with pytest.raises(InputError, match=r"exactly 2 rows; export it again"):
        model.call((X, SCALE), {})


def test_program_keeps_the_dtype_of_its_export(tmp_path: Path) -> None:
    export(tmp_path / "net.pt2")
    load(spec_of(tmp_path / "net.pt2"), dtype="float32")
    with pytest.raises(ModelLoadError, match=r"exported in float32.*again in bfloat16"):
        load(spec_of(tmp_path / "net.pt2"), dtype="bfloat16")


def test_program_of_this_process_is_loaded_from_the_store() -> None:
    net = Net().eval()
    shapes = {"x": ROWS, "scale": ROWS}
    program = torch.export.export(net, (X, SCALE), dynamic_shapes=shapes)
    model = load(recognise(program).spec)
    assert torch.allclose(
        model.call((X[:1], SCALE[:1]), {})["y"], net(X, SCALE)["y"][:1]
    )


def test_symbolic_sizes_and_branches_are_no_threat(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))
            half = (x.shape[0] * 3 + 1) // 2
            return y, torch.einsum("ij,kj->ik", x, x), torch.zeros(max(half, 3))

    program = torch.export.export(Branches(), (X,), dynamic_shapes={"x": ROWS})
    torch.export.save(program, tmp_path / "net.pt2")
    model = load(spec_of(tmp_path / "net.pt2"))
    assert model.call((X,), {})[2].shape == (8,)


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            new.writestr(info, change(info.filename, old.read(info)))


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_samples(name: str, data: bytes, touched: Path) -> bytes:
    if not name.endswith("sample_inputs/model.pt"):
        return data
    return pickled(((Touch(touched),), {}))


def in_weights(name: str, data: bytes, touched: Path) -> bytes:
    if name.endswith("weights/weight_0"):
        return pickled(Touch(touched))
    if not name.endswith("model_weights_config.json"):
        return data
    config = json.loads(data)
    for entry in config["config"].values():
        entry["use_pickle"] = entry["path_name"] == "weight_0"
    return json.dumps(config).encode()


def in_constants(name: str, data: bytes, touched: Path) -> bytes:
    if name.endswith("weights/weight_0"):
        return pickle.dumps(Touch(touched))
    if not name.endswith("model_constants_config.json"):
        return data
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
    return json.dumps({"config": {"c": {**entry, "tensor_meta": None}}}).encode()


def in_sizes(name: str, data: bytes, touched: Path) -> bytes:
    if not name.endswith("models/model.json"):
        return data
    evil = f"__import__('os').system('touch {touched}')"
    return data.replace(b"Symbol('s", f"{evil} + Symbol('s".encode())


def in_operators(name: str, data: bytes, touched: Path) -> bytes:
    return data.replace(b"torch.ops.aten.gelu.default", b"torch.os.system")


def in_names(name: str, data: bytes, touched: Path) -> bytes:
    evil = f"x=__import__('os').system('touch {touched}')"
    return data.replace(b'"name": "x"', f'"name": "{evil}"'.encode())


@pytest.mark.parametrize(
    "craft",
    [in_samples, in_weights, in_constants, in_sizes, in_operators, in_names],
)
def test_program_that_could_run_code_needs_trust(
    tmp_path: Path, craft: Callable[[str, bytes, Path], bytes]
) -> None:
    touched = tmp_path / "touched"
    export(tmp_path / "good.pt2")
    crafted = tmp_path / "bad.pt2"
    rewrite(tmp_path / "good.pt2", crafted, lambda n, d: craft(n, d, touched))
    with pytest.raises(ModelLoadError, match=r"bad\.pt2 could run code.*trust=True"):
        load(spec_of(crafted))
    assert not touched.exists()


@pytest.mark.parametrize("name", ["net.pt2", "net.pt"])
def test_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    export(tmp_path / "whole.pt2")
    whole = (tmp_path / "whole.pt2").read_bytes()
    path = tmp_path / name
    path.write_bytes(whole[: len(whole) // 2])
    kind = "exported" if name.endswith("2") else "torchscript"
    with pytest.raises(ModelLoadError, match=str(path)):
        load(spec_of(path, kind, trust=kind == "torchscript"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    for kind in ("exported", "torchscript", "onnx", "huggingface"):
        with pytest.raises(ModelLoadError, match="gone"):
            load(spec_of(tmp_path / "gone", kind, trust=True))
