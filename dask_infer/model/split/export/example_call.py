"""One call of the model on synthetic rows: what its arguments look like."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dask_infer.model.shapes.call_arguments import taken, without_cache
from dask_infer.model.shapes.trace_errors import Example, label
from dask_infer.model.split.export.layer_signature import ROWS, TOKENS
from dask_infer.model.split.export.source_model import SplitSource
from dask_infer.model.split_refusals import CannotSplit
from dask_infer.spec import ArgumentKey


def is_padded(example: Example) -> bool:
    """Whether axis 1 of an argument may have any size."""
    return None in example.shape


@dataclass(frozen=True)
class ExampleCall:
    """The arguments of a call."""

    name: str
    examples: Mapping[ArgumentKey, Example]
    #: Constant keyword arguments.
    extra: Mapping[str, Any]
    #: Optional arguments that the model does not take.
    dropped: tuple[str, ...]
    floating: torch.dtype

    @classmethod
    def of(
        cls,
        source: SplitSource,
        examples: Mapping[ArgumentKey, Example],
        extra: Mapping[str, Any],
    ) -> ExampleCall:
        """Check the arguments against the model's signature.

        Raises
        ------
        ArityMismatch
            It takes other arguments.
        """
        name, signature = source.spec.name, inspect.signature(source.module.forward)
        found = taken(name, "forward", signature, examples, extra)
        dropped = tuple(str(key) for key in examples if key not in found)
        extra = without_cache(source.module, signature, extra)
        return cls(name, found, extra, dropped, source.floating)

    def tensors(self) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Return arguments of zeros."""
        made = {key: self._zeros(key) for key in self.examples}
        args = tuple(t for key, t in made.items() if isinstance(key, int))
        return args, {key: t for key, t in made.items() if isinstance(key, str)}

    def _zeros(self, key: ArgumentKey) -> torch.Tensor:
        example = self.examples[key]
        dtype = {"floating": self.floating, **vars(torch)}.get(example.dtype)
        if not isinstance(dtype, torch.dtype):
            reason = f"{label(key)} holds {example.dtype}, of which no tensor is made"
            raise CannotSplit(self.name, reason)
        shape = [TOKENS if size is None else size for size in example.shape]
        return torch.zeros(ROWS, *shape, dtype=dtype)

    @property
    def dynamic(self) -> dict[ArgumentKey, tuple[int, ...]]:
        """Axes of each argument that may have any size."""
        return {
            key: (0, *(n + 1 for n, size in enumerate(ex.shape) if size is None))
            for key, ex in self.examples.items()
        }

    def has_tokens(self, key: ArgumentKey) -> bool:
        """Whether axis 1 of an argument is padded."""
        return is_padded(self.examples[key])
