"""The one entry: a spec becomes a model in this process.

Called in whichever thread needs the model first; loads of different models may run
at once. Whatever goes wrong is a `ModelLoadError` that names the model, except that
memory ran out, which is for the caller to answer.
"""

from __future__ import annotations

import torch

from dask_infer.model.formats.format import load_errors, no_dtype
from dask_infer.model.registry import format_of
from dask_infer.model.runtime.footprint import INT8, parse_dtype
from dask_infer.model.runtime.loaded_model import LoadedModel
from dask_infer.model.runtime.place_module import Placement
from dask_infer.model.runtime.quantized import quantize
from dask_infer.model.runtime.safetensors_files import bytes_as
from dask_infer.spec.model_spec import ModelSpec


def load(
    spec: ModelSpec, *, device: str = "cpu", dtype: str | None = None
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

    Raises
    ------
    ModelLoadError
        If it cannot be found, trusted or read; names the model and the cause.
    """
    format = format_of(spec)
    with load_errors(spec):
        placement = Placement(torch.device(device), parse_dtype(dtype))
        if placement.dtype is not None and not format.has_dtype:
            raise no_dtype(spec)
        model = format.load(spec, placement)
        if dtype == INT8:
            quantize(model)
        if model.interface == "tensor" and model.floating is None:
            model.floating = placement.dtype  # no parameter decides
        return model


def resident_bytes(spec: ModelSpec, dtype: str | None = None) -> int:
    """Projected bytes of the model once loaded in `dtype`; 0 where unknown.

    Read from the headers of safetensors files; other weights are taken as float32.

    Raises
    ------
    ModelLoadError
        If a file is missing or damaged.
    """
    wanted = parse_dtype(dtype)
    if wanted is None:
        return spec.nbytes
    files = format_of(spec).weight_files(spec)
    if not files:
        return spec.nbytes * wanted.itemsize // torch.float32.itemsize
    return sum(bytes_as(path, wanted.itemsize) for path in files)
