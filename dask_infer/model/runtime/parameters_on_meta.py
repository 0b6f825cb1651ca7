"""Modules built without memory for their parameters.

Buffers stay real, unlike under ``torch.device("meta")``: those that no checkpoint
holds (frequencies of rotary embeddings, masks) are computed as the model is built.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakTensorKeyDictionary

from dask_infer.model.runtime.footprint import with_attributes


class _Building(threading.local):
    """Whether this thread builds a model whose weights come from a file."""

    #: Stand-ins of parameters: one that is registered twice stays one.
    twins: WeakTensorKeyDictionary | None = None


_building = _Building()


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Let modules built by this thread have parameters without memory."""
    _building.twins = WeakTensorKeyDictionary()
    try:
        yield
    finally:
        _building.twins = None


def _to_meta(
    _module: torch.nn.Module, _name: str, parameter: torch.nn.Parameter | None
) -> torch.nn.Parameter | None:
    """Replace a parameter as it is registered; None leaves it as it is."""
    twins = _building.twins
    if twins is None or parameter is None or parameter.is_meta:
        return None
    if isinstance(parameter, torch.nn.UninitializedParameter):
        return None
    if parameter not in twins:
        empty = torch.empty_like(parameter, device="meta")
        twin = torch.nn.Parameter(empty, parameter.requires_grad)
        twins[parameter] = with_attributes(twin, parameter)
    return twins[parameter]  # type: ignore[no-any-return]


# Torch keeps such hooks for the whole process; ours acts in building threads only.
register_module_parameter_registration_hook(_to_meta)  # type: ignore[arg-type]
