"""The frozen nouns that travel from client to worker. Standard library only."""

from dask_infer.spec.group import GroupSpec, Patience
from dask_infer.spec.inputs import Argument, Fitted, Inputs, Undecided
from dask_infer.spec.job import Blob, Code, Job
from dask_infer.spec.layout import Layout
from dask_infer.spec.model import ModelSpec
from dask_infer.spec.outputs import ERROR_COLUMN, OutputColumn, Outputs

__all__ = [
    "ERROR_COLUMN",
    "Argument",
    "Blob",
    "Code",
    "Fitted",
    "GroupSpec",
    "Inputs",
    "Job",
    "Layout",
    "ModelSpec",
    "OutputColumn",
    "Outputs",
    "Patience",
    "Undecided",
]
