"""The layers of one stage, as the cache of replicas keeps them."""

from __future__ import annotations

from dask_infer.pipeline.messages.stage_order import StageOrder
from dask_infer.replica.cache import StageLayers


def part_of(order: StageOrder) -> StageLayers | None:
    """Return what a stage holds; None where it is the whole model."""
    if order.spec.chain is None:
        return None
    return StageLayers(order.spec.chain, order.start, order.stop, order.index)
