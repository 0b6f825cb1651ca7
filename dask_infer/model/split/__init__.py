"""A model cut into layer groups: split on the client, loaded stage by stage."""

from dask_infer.model.split.block_costs import BlockCost, profile
from dask_infer.model.split.chain import Block, Chain
from dask_infer.model.split.splitter import split
from dask_infer.model.split.stage_loader import LoadedStage, load_stage
from dask_infer.model.split_refusals import CannotSplit

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
