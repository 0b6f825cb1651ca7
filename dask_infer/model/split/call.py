"""One call of the model, made up: what its arguments look like."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dask_infer.model.shapes.propagate import with_mask
from dask_infer.model.shapes.trace_errors import Example, check_arity, label
from dask_infer.model.split.opened import Original
from dask_infer.model.split.program import Size, Value
from dask_infer.model.split.refusals import CannotSplit

Key = int | str

#: Rows and tokens of the made-up call: primes that differ, and not 1, which torch
#: takes as a fixed size.
ROWS, TOKENS = 5, 11


@dataclass(frozen=True)
class Call:
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
        cls, original: Original, examples: Mapping[Key, Example], extra: dict[str, Any]
    ) -> Call:
        """Check the arguments against the model's signature.

        Raises
        ------
        ArityMismatch
            It takes other arguments.
        """
        signature = inspect.signature(original.module.forward)
        parameters = signature.parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        dropped = tuple(
            str(key)
            for key, example in examples.items()
            if example.optional and key not in parameters and not takes_any
        )
        taken = {key: ex for key, ex in examples.items() if key not in dropped}
        taken = with_mask(signature, taken)
        check_arity(original.spec.name, "forward", signature, taken, extra)
        if hasattr(original.module, "config") and "use_cache" in parameters:
            extra.setdefault("use_cache", False)
        return cls(original.spec.name, taken, extra, dropped, original.floating)

    def tensors(
        self, rows: int = ROWS, tokens: int = TOKENS
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Return arguments of zeros."""
        made = {key: self._zeros(key, rows, tokens) for key in self.examples}
        args = tuple(t for key, t in made.items() if isinstance(key, int))
        return args, {key: t for key, t in made.items() if isinstance(key, str)}

    def _zeros(self, key: Key, rows: int, tokens: int) -> torch.Tensor:
        example = self.examples[key]
        dtype = {"floating": self.floating, **vars(torch)}.get(example.dtype)
        if not isinstance(dtype, torch.dtype):
            reason = f"{label(key)} holds {example.dtype}, of which no tensor is made"
            raise CannotSplit(self.name, reason)
        shape = [tokens if size is None else size for size in example.shape]
        return torch.zeros(rows, *shape, dtype=dtype)

    def values(self, names: Mapping[Key, str]) -> dict[str, Value | Size]:
        """Return what is known before any layer runs: the sizes of the inputs.

        Parameters
        ----------
        names
            What the program calls them.
        """
        args, kwargs = self.tensors(1, 1)
        given: dict[Key, torch.Tensor] = dict(enumerate(args))
        given.update(kwargs.items())
        values: dict[str, Value | Size] = {}
        for key, name in names.items():
            shape = [
                Size(0, per_token=1) if size is None else Size(size)
                for size in self.examples[key].shape
            ]
            values[name] = Value(given[key].dtype, (Size(0, per_row=1), *shape))
        return values

    @property
    def dynamic(self) -> dict[Key, tuple[int, ...]]:
        """Axes of each argument that may have any size."""
        return {
            key: (0, *(n + 1 for n, size in enumerate(ex.shape) if size is None))
            for key, ex in self.examples.items()
        }

    def has_tokens(self, key: Key) -> bool:
        """Whether axis 1 of an argument is padded."""
        return None in self.examples[key].shape
