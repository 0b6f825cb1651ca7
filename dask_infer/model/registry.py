"""The model formats, in the order in which they are asked whether a model is theirs.

A new format is one file of `formats` and one line here.
"""

from __future__ import annotations

from dask_infer.model.formats.estimator import EstimatorFormat
from dask_infer.model.formats.exported_program import ExportedProgramFormat
from dask_infer.model.formats.factory import FactoryFormat
from dask_infer.model.formats.format import Format
from dask_infer.model.formats.function import FunctionFormat
from dask_infer.model.formats.huggingface import HuggingFaceFormat
from dask_infer.model.formats.onnx import OnnxFormat
from dask_infer.model.formats.sentence_transformers import SentenceTransformersFormat
from dask_infer.model.formats.tflite import TFLiteFormat
from dask_infer.model.formats.torch_module import TorchModuleFormat
from dask_infer.model.formats.torchscript import TorchScriptFormat
from dask_infer.spec.model_spec import ModelSpec

#: Most particular first: a directory of sentence-transformers has the files of a
#: Hugging Face model, a script is a module, an estimator may be callable.
FORMATS: tuple[Format, ...] = (
    FactoryFormat(),
    ExportedProgramFormat(),
    OnnxFormat(),
    TFLiteFormat(),
    TorchScriptFormat(),
    SentenceTransformersFormat(),
    HuggingFaceFormat(),
    TorchModuleFormat(),
    EstimatorFormat(),
    FunctionFormat(),
)

_by_kind = {format.kind: format for format in FORMATS}


def format_of(spec: ModelSpec) -> Format:
    """Return the format of a model."""
    return _by_kind[spec.kind]
