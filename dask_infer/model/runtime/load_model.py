"""The one entry: a spec becomes a model in this process.

Called in whichever thread needs the model first; loads of different models may run
at once. Whatever goes wrong is a `ModelLoadError` that names the model, except that
memory ran out, which is for the caller to answer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dask_infer.device.out_of_memory import is_out_of_memory
from dask_infer.errors import InferError, ModelLoadError
from dask_infer.model.formats.estimator import load_callable, load_estimator
from dask_infer.model.formats.factory import load_factory
from dask_infer.model.formats.huggingface import (
    load_huggingface,
    load_sentence_transformers,
)
from dask_infer.model.formats.onnx import load_onnx
from dask_infer.model.formats.programs import exported_model, torchscript_model
from dask_infer.model.formats.torch_module import Placement, load_module
from dask_infer.model.runtime.footprint import INT8, parse_dtype, resident_bytes
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.methods import MissingMethodError, check_method
from dask_infer.model.runtime.quantized import quantize
from dask_infer.spec.model_spec import Kind, ModelSpec

__all__ = [
    "LoadedModel",
    "MissingMethodError",
    "check_method",
    "load",
    "resident_bytes",
]

_LOADERS: dict[Kind, Callable[[ModelSpec, Placement], LoadedModel]] = {
    "module": load_module,
    "estimator": load_estimator,
    "callable": load_callable,
    "factory": load_factory,
    "exported": exported_model,
    "torchscript": torchscript_model,
    "huggingface": load_huggingface,
    "sentence-transformers": load_sentence_transformers,
    "onnx": load_onnx,
}


def load(
    spec: ModelSpec,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    method: str | None = None,
) -> LoadedModel:
    """Load a model so that it can be called.

    Parameters
    ----------
    spec
        What to load.
    device
        Where a torch or ONNX model is to live: ``"cpu"``, ``"cuda:1"``, ``"mps"``.
    dtype
        Floating dtype to run in: ``"float32"``, ``"float64"``, ``"bfloat16"`` or
        ``"float16"``; ``"int8"`` for float32 with rounded linear layers; None as it
        was saved.
    method
        Checked to exist, so that a wrong name fails here.

    Raises
    ------
    ModelLoadError
        If it cannot be found, trusted or read; names the model and the cause.
    """
    try:
        placement = Placement(torch.device(device), parse_dtype(dtype))
        model = _LOADERS[spec.kind](spec, placement)
        if dtype == INT8:
            quantize(model)
        if model.interface == "tensor" and model.floating is None:
            model.floating = placement.dtype  # no parameter tells
        if method is not None:
            model.function(method)
        return model
    except InferError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelLoadError(_explain(spec, error)) from error


def _explain(spec: ModelSpec, error: Exception) -> str:
    where = f" from {spec.path}" if spec.path else ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return (
            f"{spec.name}{where} needs the module {error.name}, which this worker "
            f"cannot import; {_remedy(package)}"
        )
    if isinstance(error, AttributeError) and "Can't get attribute" in str(error):
        return (
            f"{spec.name}{where} needs a class that this worker's copy of its module "
            f"does not have ({error}); install the same version on the workers or send "
            "it with client.upload_file"
        )
    cause = str(error).strip() or "no message"
    return f"{spec.name}{where} cannot be loaded: {type(error).__name__}: {cause}"


_EXTRAS = {
    "sklearn": "scikit-learn",
    "transformers": "huggingface",
    "tokenizers": "huggingface",
    "sentence_transformers": "huggingface",
    "onnxruntime": "onnx",
}


def _remedy(package: str) -> str:
    if package in _EXTRAS:
        return f'pip install "dask-infer[{_EXTRAS[package]}]" on the workers'
    return f"install {package} on the workers or send it with client.upload_file"
