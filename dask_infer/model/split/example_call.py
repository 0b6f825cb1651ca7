"""One call of the model on synthetic rows: what its arguments look like."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dask_infer.model.shapes.propagate import with_mask
from dask_infer.model.shapes.trace_errors import Example, check_arity, label
from dask_infer.model.split.layer_signature import ROWS, TOKENS
from dask_infer.model.split.source_model import SplitSource
from dask_infer.model.split.split_refusals import CannotSplit

Key = int | str


def is_padded(example: Example) -> bool:
    """Whether axis 1 of an argument may have any size."""
    return None in example.shape


@dataclass(frozen=True)
class ExampleCall:
    """The arguments of a call."""

    name: str
    examples: Mapping[Key, Example]
    #: Constant keyword arguments.
    extra: Mapping[str, Any]
    #: Optional arguments that the model does not take.
    dropped: tuple[str, ...]
    floating: torch.dtype

    @classmethod
    def of(
        cls, source: SplitSource, examples: Mapping[Key, Example], extra: dict[str, Any]
    ) -> ExampleCall:
        """Check the arguments against the model's signature.

        Raises
        ------
        ArityMismatch
            It takes other arguments.
        """
        signature = inspect.signature(source.module.forward)
        parameters = signature.parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        dropped = tuple(
            str(key)
            for key, example in examples.items()
            if example.optional and key not in parameters and not takes_any
        )
        taken = {key: ex for key, ex in examples.items() if key not in dropped}
        taken = with_mask(signature, taken)
        check_arity(source.spec.name, "forward", signature, taken, extra)
        if hasattr(source.module, "config") and "use_cache" in parameters:
            extra.setdefault("use_cache", False)
        return cls(source.spec.name, taken, extra, dropped, source.floating)

    def tensors(self) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Return arguments of zeros."""
        made = {key: self._zeros(key) for key in self.examples}
        args = tuple(t for key, t in made.items() if isinstance(key, int))
        return args, {key: t for key, t in made.items() if isinstance(key, str)}

    def _zeros(self, key: Key) -> torch.Tensor:
        example = self.examples[key]
        dtype = {"floating": self.floating, **vars(torch)}.get(example.dtype)
        if not isinstance(dtype, torch.dtype):
            reason = f"{label(key)} holds {example.dtype}, of which no tensor is made"
            raise CannotSplit(self.name, reason)
        shape = [TOKENS if size is None else size for size in example.shape]
        return torch.zeros(ROWS, *shape, dtype=dtype)

    @property
    def dynamic(self) -> dict[Key, tuple[int, ...]]:
        """Axes of each argument that may have any size."""
        return {
            key: (0, *(n + 1 for n, size in enumerate(ex.shape) if size is None))
            for key, ex in self.examples.items()
        }

    def has_tokens(self, key: Key) -> bool:
        """Whether axis 1 of an argument is padded."""
        return is_padded(self.examples[key])
