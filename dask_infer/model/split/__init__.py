"""A model cut into layer groups: split on the client, loaded stage by stage."""

from dask_infer.model.split.chain import Block, Chain
from dask_infer.model.split.costs import BlockCost, profile
from dask_infer.model.split.load import LoadedStage, load_stage
from dask_infer.model.split.refusals import CannotSplit
from dask_infer.model.split.tiers import split

__all__ = [
    "Block",
    "BlockCost",
    "CannotSplit",
    "Chain",
    "LoadedStage",
    "load_stage",
    "profile",
    "split",
]
