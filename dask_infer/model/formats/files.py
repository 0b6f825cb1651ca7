"""Models that live in files: what they are, their keys and sizes, and what is refused.

Workers read them at the same path, so they never enter the content store.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from dask_infer.errors import ModelLoadError
from dask_infer.model.formats.file_headers import (
    check_onnx,
    check_safetensors,
    check_torch,
    check_zip,
    read_json,
)
from dask_infer.model.identity.content_key import content_key
from dask_infer.spec.model_spec import Kind, ModelSpec

#: Bytes at either end of a file that count as its header.
HEADER = 4096

#: Files of a model directory that say what it computes.
_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".jinja")

#: Weights that only a pickle loader reads.
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")

_ACCEPTED = (
    "*.pt2, *.onnx, *.pt or *.pth (trusted), or a directory with config.json or "
    "modules.json"
)


def spec_of_path(given: str, trust: bool = False) -> ModelSpec:
    """Spec of a model in a file or directory.

    Raises
    ------
    ModelLoadError
        If it is missing, damaged, of no known kind, or not to be trusted.
    """
    path = _existing(given, "there is no model")
    kind = _kind_of_directory(path) if path.is_dir() else _kind_of_file(path, trust)
    files = list(_files(path))
    return ModelSpec(
        key=content_key((kind, trust, str(path), _fingerprints(path, files))),
        name=path.name if path.is_dir() else path.stem,
        kind=kind,
        path=str(path),
        trust=trust,
        nbytes=_size(path, files),
    )


def weights_key(given: str) -> tuple[str, str]:
    """Real path and content key of the safetensors weights of a factory.

    Raises
    ------
    ModelLoadError
        If they are missing, damaged, or no safetensors.
    """
    path = _existing(given, "there are no weights")
    files = [path]
    if path.name.endswith(".index.json"):
        files += _shards(path)
    elif path.suffix != ".safetensors":
        raise ModelLoadError(
            f"weights={given!r} is no safetensors file; save the weights with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        )
    for file in files:
        if file.suffix == ".safetensors":
            check_safetensors(file)
    return str(path), content_key((str(path), _fingerprints(path, files)))


def weights_size(path: str) -> int:
    """Bytes of the weights of a factory."""
    index = Path(path)
    files = _shards(index) if index.suffix == ".json" else [index]
    return sum(file.stat().st_size for file in files)


def _existing(given: str, missing: str) -> Path:
    path = Path(os.path.expanduser(given))
    if path.exists():
        return Path(os.path.realpath(path))
    hint = "check the path"
    if "://" in given:
        hint = "download it to a path that client and workers can read"
    elif given.count("/") <= 1 and not Path(given).suffix:
        hint = (
            "a model of the Hugging Face hub must be downloaded first: "
            "huggingface_hub.snapshot_download(name) returns its directory"
        )
    raise ModelLoadError(f"{missing} at {given!r}; {hint}")


# Files


def _kind_of_file(path: Path, trust: bool) -> Kind:
    suffix = path.suffix.lower()
    if suffix == ".pt2":
        check_zip(path)
        return "exported"
    if suffix == ".onnx":
        check_onnx(path)
        return "onnx"
    if suffix in (".pt", ".pth"):
        check_torch(path)
        if not trust:
            raise ModelLoadError(
                f"{path} can run code when it is loaded; if you trust it pass "
                "ModelSource.from_path(path, trust=True)"
            )
        return "torchscript"
    raise ModelLoadError(f"{path} is no model that can be loaded: {_advice(suffix)}")


def _advice(suffix: str) -> str:
    if suffix == ".safetensors":
        return (
            "it holds weights only; pass ModelSource.from_factory(build, weights=path)"
        )
    if suffix in (".pkl", ".pickle", ".joblib", ".bin", ".ckpt"):
        return "load it yourself, if you trust it, and pass the object"
    return f"pass {_ACCEPTED}"


# Directories


def _kind_of_directory(path: Path) -> Kind:
    if (path / "modules.json").is_file():
        parts = _check_modules(path)
        kind: Kind = "sentence-transformers"
    elif (path / "config.json").is_file():
        parts, kind = [path], "huggingface"
    else:
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:5])
        raise ModelLoadError(
            f"{path} holds no model: it has neither config.json (Hugging Face) nor "
            f"modules.json (sentence-transformers), but {found or 'nothing at all'}"
        )
    for part in parts:
        _check_config(part)
    if not any([_check_weights(part) for part in parts]):
        raise ModelLoadError(f"{path} holds no *.safetensors weights; save them there")
    return kind


def _check_modules(path: Path) -> list[Path]:
    """Return the directory of each module of a sentence-transformers model."""
    parts = []
    for module in read_json(path / "modules.json"):
        kind = str(module["type"])
        if not kind.startswith("sentence_transformers."):
            raise ModelLoadError(
                f"{path} needs code of its own ({kind} in modules.json), which is "
                "never run from a directory; install that code and pass "
                "ModelSource.from_factory(build)"
            )
        part = path / str(module.get("path", ""))
        if part.is_dir():
            parts.append(part)
    return parts


def _check_config(path: Path) -> None:
    config = path / "config.json"
    if not config.is_file():
        return
    content = read_json(config)
    if isinstance(content, dict) and content.get("auto_map"):
        code = ", ".join(sorted(map(str, content["auto_map"].values())))
        raise ModelLoadError(
            f"{path} needs code of its own (auto_map in config.json: {code}), which is "
            "never run from a directory; build the model yourself, if you trust that "
            "code, and pass the module or ModelSource.from_factory(build)"
        )


def _check_weights(path: Path) -> bool:
    """Whether a directory has safetensors; refuse what only pickle would read."""
    files = sorted(path.glob("*.safetensors"))
    for index in path.glob("*.safetensors.index.json"):
        _shards(index)
    for file in files:
        check_safetensors(file)
    pickled = sorted(file.name for kind in _PICKLED for file in path.glob(kind))
    if pickled and not files:
        raise ModelLoadError(
            f"{path} has its weights in {pickled[0]} only, which can run code when it "
            "is loaded; convert them: AutoModel.from_pretrained(old)"
            ".save_pretrained(new, safe_serialization=True)"
        )
    return bool(files)


def _shards(index: Path) -> list[Path]:
    """Files that an index of weights names."""
    names = sorted(set(read_json(index)["weight_map"].values()))
    shards = [index.parent / name for name in names]
    for shard in shards:
        if not shard.is_file():
            raise ModelLoadError(
                f"{shard} is missing, which {index.name} names; fetch or save the "
                "model again"
            )
    return shards


# What counts as content


def _files(path: Path) -> Iterator[Path]:
    """Yield the files whose change is a change of the model."""
    if not path.is_dir():
        yield path
        if path.suffix == ".onnx":  # weights beyond 2 GB lie beside the model
            yield from sorted(path.parent.glob(f"{path.stem}*data*"))
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(_SUFFIXES):
                yield Path(folder, name)


def _fingerprints(root: Path, files: list[Path]) -> list[tuple[str, int, int, str]]:
    return [
        (os.path.relpath(file, root), *_fingerprint(file))
        for file in dict.fromkeys(files)
    ]


def _fingerprint(path: Path) -> tuple[int, int, str]:
    """Size, time of change, and digest of both ends of a file."""
    status = path.stat()
    with path.open("rb") as file:
        head = file.read(HEADER)
        file.seek(max(0, status.st_size - HEADER))
        tail = file.read(HEADER)
    return status.st_size, status.st_mtime_ns, hashlib.sha256(head + tail).hexdigest()


def _size(path: Path, files: list[Path]) -> int:
    weights = [f for f in files if not path.is_dir() or f.suffix == ".safetensors"]
    return sum(file.stat().st_size for file in weights)
