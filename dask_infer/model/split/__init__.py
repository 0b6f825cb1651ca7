"""A model cut into layer groups: split on the client, loaded stage by stage."""

from dask_infer.model.split.block_costs import profile
from dask_infer.model.split.chain import Chain
from dask_infer.model.split.splitter import split
from dask_infer.model.split.stage_loader import load_stage
from dask_infer.model.split_refusals import CannotSplit

__all__ = ["CannotSplit", "Chain", "load_stage", "profile", "split"]
