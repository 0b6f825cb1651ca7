"""Fingerprints: equal for layers that compute the same but for their numbers."""

from __future__ import annotations

import hashlib
import io
from typing import Any

from torch import nn

from dask_infer.model.identity import pickling

#: What layers of transformers 5 call their own number; alike but for that they are.
NUMBERS = frozenset({"layer_idx", "layer_id"})


def fingerprint(layer: nn.Module) -> bytes | None:
    """Return the fingerprint of a layer on meta; None for one that is like no other."""
    written = io.BytesIO()
    try:
        _Unnumbered(written).dump(layer)
    except Exception:
        return None
    return hashlib.sha256(written.getvalue()).digest()


class _Unnumbered(pickling.Pickler):
    """Leaves out the number that a layer of some families has in its model."""

    def reducer_override(self, obj: Any) -> Any:
        """Return how to pickle `obj`; NotImplemented for pickle's default."""
        if isinstance(obj, nn.Module) and NUMBERS & vars(obj).keys():
            state = {k: v for k, v in vars(obj).items() if k not in NUMBERS}
            return nn.Module, (), {"class": type(obj), **state}
        return super().reducer_override(obj)
