"""Deep-learning inference as a method of a Dask dataframe.

Importing the package registers ``.infer`` on Dask dataframes and series.
"""

from __future__ import annotations

from dask_infer import config as _config  # noqa: F401  (registers the defaults)
from dask_infer._dask import register_tensor_dtype
from dask_infer.accessor import DataFrameInfer, PandasSeriesInfer, SeriesInfer
from dask_infer.batch.tensor.tensor_array import TensorArray, TensorDtype
from dask_infer.client.layout_plan import Plan
from dask_infer.errors import (
    InferError,
    InputError,
    ModelLoadError,
    OutputError,
    PartitionError,
    PlacementError,
)
from dask_infer.graph.computing import listeners
from dask_infer.model.source import ModelSource
from dask_infer.model.towers import Ensemble, Towers
from dask_infer.replica.residents import replicas, unload
from dask_infer.spec import Layout
from dask_infer.watching.local_log import log_local_jobs
from dask_infer.watching.progress import progress
from dask_infer.watching.why import why

__version__ = "0.1.0"

__all__ = [
    "DataFrameInfer",
    "Ensemble",
    "InferError",
    "InputError",
    "Layout",
    "ModelLoadError",
    "ModelSource",
    "OutputError",
    "PandasSeriesInfer",
    "PartitionError",
    "PlacementError",
    "Plan",
    "SeriesInfer",
    "TensorArray",
    "TensorDtype",
    "Towers",
    "progress",
    "replicas",
    "unload",
    "why",
]

register_tensor_dtype(TensorArray, TensorDtype)
listeners.append(log_local_jobs)
