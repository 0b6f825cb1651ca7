"""The frozen nouns that travel from client to worker. Standard library only."""

from dask_infer.spec.group_spec import AutoSpec, GroupSpec, GroupTimeouts
from dask_infer.spec.input_spec import Argument, ArgumentKey, Fitted, Inputs, Undecided
from dask_infer.spec.job import (
    AnyJob,
    ChosenLayout,
    Job,
    LayerGroups,
    Tower,
    TowersJob,
    UserCode,
)
from dask_infer.spec.layout import Layout
from dask_infer.spec.model_spec import Blob, ModelSpec, StageLayers
from dask_infer.spec.output_spec import ERROR_COLUMN, OutputColumn, Outputs

__all__ = [
    "ERROR_COLUMN",
    "AnyJob",
    "Argument",
    "ArgumentKey",
    "AutoSpec",
    "Blob",
    "ChosenLayout",
    "Fitted",
    "GroupSpec",
    "GroupTimeouts",
    "Inputs",
    "Job",
    "LayerGroups",
    "Layout",
    "ModelSpec",
    "OutputColumn",
    "Outputs",
    "StageLayers",
    "Tower",
    "TowersJob",
    "Undecided",
    "UserCode",
]
