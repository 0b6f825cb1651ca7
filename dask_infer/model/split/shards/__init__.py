"""Tensors of a stage divided among shards, and forwards that put them together."""

from dask_infer.model.split.shards import divided_results, rules
from dask_infer.model.split.shards.collective import Collective, exchanging
from dask_infer.model.split.shards.divided_tensor import DividedTensor
from dask_infer.model.split.shards.division import Shard

__all__ = [
    "Collective",
    "DividedTensor",
    "Shard",
    "divided_results",
    "exchanging",
    "rules",
]
